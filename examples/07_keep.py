# SPDX-License-Identifier: MIT
"""Keep a frame beyond its poll without a copy: its page leaves the batch, and goes home when you let go of it."""

from pagepool import Page
from pagepool.drivers.loopback import NUMBER_AT, LoopbackQueue, UdpFlows

kept: list[Page] = []

with LoopbackQueue(UdpFlows(flows=64, count=10_000)) as queue:
    pool = queue.pool
    for batch in queue.poll_forever(budget=64):
        port = batch.headers(42)[:, 34:36]
        kept += batch.keep((port[:, 0] == 1024 >> 8) & (port[:, 1] == 7))  # source port 1031: flow 7

    print(f"{len(kept)} frames of flow 7 kept, {pool.lent} pages lent, the device's own among them")
    numbers = [int.from_bytes(page[NUMBER_AT : NUMBER_AT + 4], "big") for page in kept]
    print("their running numbers:", *numbers[:8], "...")
    print(f"the first still lies at vaddr {kept[0].vaddr:#x}, where the device wrote it")
    kept.clear()  # every page goes home here

print(f"after the queue is closed {pool.lent} pages are lent")

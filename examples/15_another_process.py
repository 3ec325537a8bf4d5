# SPDX-License-Identifier: MIT
"""Lend received frames to another process, which reads them where they lie; the pages come home by themselves.

The second process maps the memory read-only. Kill it at any moment: its pages come home all the same.
"""

import subprocess
import sys

from pagepool import PageAllocator, SharedPool, attach
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.drivers.loopback.pool import make_pool


def consume(fd: int) -> None:
    """Read what comes, as from any queue."""
    frames, ports = 0, set()
    with attach(fd) as queue:
        for batch in queue.poll_forever(budget=64):
            frames += len(batch)
            ports.update(batch.headers(42).field(34, ">u2").tolist())  # NumPy over another process's pages
    print(f"consumer: {frames} frames from {len(ports)} ports, read where the device put them")


def produce() -> None:
    """Receive, and hand on."""
    memory = PageAllocator(8 << 20, "memfd", commit=True)  # a file that can be mapped; for AF_XDP: memory="memfd"
    pool = make_pool(2048, memory=memory, zero=True)
    with LoopbackQueue(UdpFlows(flows=64, count=20_000), pool=pool) as queue, SharedPool(pool) as shared:
        with shared.connect() as theirs:
            child = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        shared.wait_for_consumers()
        (consumer,) = shared.consumers
        for batch in queue.poll_forever(budget=64):
            consumer.wait_for_room(len(batch))  # or lose frames, and count them
            batch.redirect(consumer)  # ids go through the ring, not bytes
        shared.close(timeout=10)  # says so, and waits for what is out
        child.wait()
        print(f"producer: {queue.xdp_stats.redirect} frames lent to {consumer.peer.name}, {pool.lent} pages lent now")
        print(f"          with {pool.stats().fresh} pages, none of them copied")
    pool.close()


if __name__ == "__main__":
    consume(int(sys.argv[1])) if len(sys.argv) > 1 else produce()

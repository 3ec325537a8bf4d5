# SPDX-License-Identifier: MIT
"""NumPy over the frames of a poll, and a verdict for each: send the UDP back, drop the rest.

`LoopbackQueue` is a NIC in software; with `AfXdpQueue("eth0")` in its place this is a program for a real one.
"""

from pagepool.drivers.loopback import LoopbackQueue, UdpFlows

wire: list[bytes] = []
traffic = UdpFlows(flows=16, count=20_000, udp_share=0.25)

with LoopbackQueue(traffic, wire=wire) as queue:
    for batch in queue.poll_forever(budget=64):
        header = batch.headers(42)  # (n, 42) bytes, still where the device wrote them
        udp = header[:, 23] == 17
        destination = header[:, 0:6]  # a copy: fancy indexing gathers
        header[:, 0:6] = header[:, 6:12]  # and assignment scatters into the frames
        header[:, 6:12] = destination
        batch.tx(udp)
        batch.drop(~udp)

    verdicts = queue.xdp_stats
    print(f"{verdicts.rx_frames:,} frames: {verdicts.tx:,} sent back, {verdicts.drop:,} dropped")
    print(f"{len(wire):,} frames on the wire, to {wire[0][0:6].hex(':')}")

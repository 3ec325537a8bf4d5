# SPDX-License-Identifier: MIT
"""A bridge: what comes in on one interface goes out on the other, by the ids of its pages; no byte is copied.

``14_bridge.py eth0 eth1`` joins two interfaces until Ctrl-C (root); without them, two NICs in software.
"""

import sys

from pagepool.drivers.af_xdp import open_queues
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.loopback import LoopbackNic, UdpFlows


def interfaces(a: str, b: str) -> None:
    """All queues of both, over one memory."""
    with open_queues([a, b], promiscuous=True) as queues:
        sides = [[queue for queue in queues if queue.name == name] for name in (a, b)]
        bridge = Bridge(sides[0], sides[1])
        try:
            bridge.run()
        except KeyboardInterrupt:
            print(bridge.stats())


def software() -> None:
    """Ten thousand frames one way, three thousand the other."""
    with LoopbackNic(1, UdpFlows(count=10_000)) as left, LoopbackNic(1, UdpFlows(count=3_000)) as right:
        bridge = Bridge(left.queue(0), right.queue(0))
        bridge.run()  # a thread for each queue; ends with its sources
        stats = bridge.stats()
        print(f"there: {stats.a_to_b.forwarded:,} frames, {stats.a_to_b.refused} refused, {stats.a_to_b.copied} copied")
        print(f"back:  {stats.b_to_a.forwarded:,} frames, {stats.b_to_a.refused} refused, {stats.b_to_a.copied} copied")


if len(sys.argv) == 3:
    interfaces(sys.argv[1], sys.argv[2])
else:
    software()

# SPDX-License-Identifier: MIT
"""A NIC in software and its driver: what a real queue does, on any machine, without privilege.

For demonstrations, for learning, and as the deterministic double in tests: ``queue.nic.step(n)`` lets exactly
n frames come.
"""

from pagepool.drivers.loopback.bus import BusError, DmaBus, HostBus
from pagepool.drivers.loopback.nic import LoopbackNic
from pagepool.drivers.loopback.pool import make_pool
from pagepool.drivers.loopback.queue import LoopbackQueue
from pagepool.drivers.loopback.queue_stats import LoopbackStats
from pagepool.drivers.loopback.rss import rss_hash
from pagepool.drivers.loopback.sources import FrameBlock, FrameSource
from pagepool.drivers.loopback.udp_flows import NUMBER_AT, UdpFlows

__all__ = [
    "NUMBER_AT",
    "BusError",
    "DmaBus",
    "FrameBlock",
    "FrameSource",
    "HostBus",
    "LoopbackNic",
    "LoopbackQueue",
    "LoopbackStats",
    "UdpFlows",
    "make_pool",
    "rss_hash",
]

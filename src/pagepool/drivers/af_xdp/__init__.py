# SPDX-License-Identifier: MIT
"""AF_XDP: a queue of a network interface in user space, with the pool's arena as its UMEM."""

from pagepool.drivers.af_xdp.arrival import StampedBatch
from pagepool.drivers.af_xdp.bpf_object import BpfMap, ObjectFileError, XdpObject
from pagepool.drivers.af_xdp.channels import nr_rx_queues
from pagepool.drivers.af_xdp.filter import FilterError
from pagepool.drivers.af_xdp.open_queues import open_queues
from pagepool.drivers.af_xdp.queue import AfXdpQueue, pages_for_queue
from pagepool.drivers.af_xdp.queue_stats import AfXdpStats
from pagepool.drivers.rx_queue import QueueClosedError

__all__ = [
    "AfXdpQueue",
    "AfXdpStats",
    "BpfMap",
    "FilterError",
    "ObjectFileError",
    "QueueClosedError",
    "StampedBatch",
    "XdpObject",
    "nr_rx_queues",
    "open_queues",
    "pages_for_queue",
]

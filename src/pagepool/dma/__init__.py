# SPDX-License-Identifier: MIT
"""Who must be able to reach the pages: devices, and layers that stand in front of one."""

from pagepool.dma.call import DmaCall, DmaOp
from pagepool.dma.counting import Counting, DmaCounts
from pagepool.dma.device import DmaDevice, DmaDir, MapGranularity
from pagepool.dma.faults import FaultInjector, FaultRule
from pagepool.dma.host import HostDevice
from pagepool.dma.layer import DmaLayer, unwrap
from pagepool.dma.tracer import DmaEvent, Tracer
from pagepool.dma.vfio.device import VfioDevice

__all__ = [
    "Counting",
    "DmaCall",
    "DmaCounts",
    "DmaDevice",
    "DmaDir",
    "DmaEvent",
    "DmaLayer",
    "DmaOp",
    "FaultInjector",
    "FaultRule",
    "HostDevice",
    "MapGranularity",
    "Tracer",
    "VfioDevice",
    "unwrap",
]

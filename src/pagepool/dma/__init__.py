# SPDX-License-Identifier: MIT
"""Who must be able to reach the pages: devices, and layers that stand in front of one."""

from pagepool.dma.bounce import Bounce
from pagepool.dma.bus import DmaBus, bus_of
from pagepool.dma.call import DmaCall, DmaOp
from pagepool.dma.counting import Counting, DmaCounts
from pagepool.dma.device import DmaDevice, DmaDir, MapGranularity
from pagepool.dma.faults import FaultInjector, FaultRule
from pagepool.dma.findings import Finding, FindingKind, HistoryEntry
from pagepool.dma.host import HostDevice
from pagepool.dma.iova_table import DMA_ENTRY_LIMIT, DMA_READ, DMA_WRITE, IOVA_RANGES
from pagepool.dma.layer import DmaLayer, unwrap
from pagepool.dma.soft_iommu import SoftIommu
from pagepool.dma.tracer import DmaEvent, Tracer
from pagepool.dma.vfio.device import VfioDevice

__all__ = [
    "DMA_ENTRY_LIMIT",
    "DMA_READ",
    "DMA_WRITE",
    "IOVA_RANGES",
    "Bounce",
    "Counting",
    "DmaBus",
    "DmaCall",
    "DmaCounts",
    "DmaDevice",
    "DmaDir",
    "DmaEvent",
    "DmaLayer",
    "DmaOp",
    "FaultInjector",
    "FaultRule",
    "Finding",
    "FindingKind",
    "HistoryEntry",
    "HostDevice",
    "MapGranularity",
    "SoftIommu",
    "Tracer",
    "VfioDevice",
    "bus_of",
    "unwrap",
]

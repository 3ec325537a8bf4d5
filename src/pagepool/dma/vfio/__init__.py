# SPDX-License-Identifier: MIT
"""PCI devices driven from user space: an IOMMU's mappings, a function's registers, its interrupts."""

from pagepool.dma.vfio.abi import IommuInfo
from pagepool.dma.vfio.device import VfioDevice
from pagepool.dma.vfio.function import PciFunction, Region
from pagepool.dma.vfio.interrupts import Interrupts, IrqKind
from pagepool.dma.vfio.iova import IovaSpace
from pagepool.dma.vfio.registers import Registers
from pagepool.dma.vfio.sysfs import PciSysfs, functions

__all__ = [
    "Interrupts",
    "IommuInfo",
    "IovaSpace",
    "IrqKind",
    "PciFunction",
    "PciSysfs",
    "Region",
    "Registers",
    "VfioDevice",
    "functions",
]

# SPDX-License-Identifier: MIT
"""PCI through sysfs, not VFIO: a device's driver, IOMMU group, BARs and configuration space."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

DEVICES_FOLDER = Path("/sys/bus/pci/devices")
COMMAND_OFFSET, COMMAND_MEMORY, COMMAND_BUS_MASTER = 4, 1 << 1, 1 << 2


class PciDevice:
    """A device at ``bdf``, as sysfs writes its place (``0000:21:00.0``)."""

    def __init__(self, bdf: str) -> None:
        self.bdf = bdf
        self.folder = DEVICES_FOLDER / bdf

    @property
    def vendor(self) -> int:
        """PCI vendor id."""
        return int((self.folder / "vendor").read_text(), 16)

    @property
    def device(self) -> int:
        """PCI device id."""
        return int((self.folder / "device").read_text(), 16)

    @property
    def nid(self) -> int:
        """NUMA node, -1 for none."""
        return int((self.folder / "numa_node").read_text())

    @property
    def driver(self) -> str:
        """Name of the kernel driver that has the device, "" for none."""
        link = self.folder / "driver"
        return link.resolve().name if link.exists() else ""

    @property
    def iommu_group(self) -> int | None:
        """Number of the IOMMU group, None without an IOMMU."""
        link = self.folder / "iommu_group"
        return int(link.resolve().name) if link.exists() else None

    def bind(self, driver: str) -> None:
        """Give the device to ``driver``, taking it from the one that has it; "" gives it to none."""
        if self.driver == driver:
            return
        if self.driver:
            (self.folder / "driver/unbind").write_text(self.bdf)
        (self.folder / "driver_override").write_text(driver or "\n")
        if driver:
            Path("/sys/bus/pci/drivers_probe").write_text(self.bdf)
            if self.driver != driver:
                raise OSError(f"{self.bdf} is with {self.driver or 'no driver'}, not with {driver}")

    def enable(self, *, bus_master: bool) -> None:
        """Let the device answer on its BARs, and issue DMA or not."""
        with open(self.folder / "config", "r+b", buffering=0) as config:
            command = int.from_bytes(os.pread(config.fileno(), 2, COMMAND_OFFSET), "little") | COMMAND_MEMORY
            command = command | COMMAND_BUS_MASTER if bus_master else command & ~COMMAND_BUS_MASTER
            os.pwrite(config.fileno(), command.to_bytes(2, "little"), COMMAND_OFFSET)

    def map_bar(self, index: int) -> mmap.mmap:
        """Map a memory BAR. Not while a driver has the device."""
        fd = os.open(self.folder / f"resource{index}", os.O_RDWR | os.O_SYNC)
        try:
            return mmap.mmap(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

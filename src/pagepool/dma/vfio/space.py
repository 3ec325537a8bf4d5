# SPDX-License-Identifier: MIT
"""What an I/O address space must offer: device files to open, and mappings to make and undo.

A protocol with two implementations, `type1` (containers and groups, every kernel) and `iommufd` (one character
device per function, newer kernels). Who chooses the iovas, and in which sizes, is `device.VfioDevice`.
"""

from __future__ import annotations

from typing import Protocol

from pagepool.dma.vfio.abi import IommuInfo
from pagepool.dma.vfio.sysfs import PciSysfs

__all__ = ["IommuSpace"]


class IommuSpace(Protocol):
    """One I/O address space; every device opened in it sees the same mappings.

    Notes
    -----
    Context: any thread; the kernel locks.
    """

    @property
    def name(self) -> str:
        """For error texts: ``"type1 container"`` or ``"iommufd"``."""

    def open_device(self, pci: PciSysfs) -> int:
        """Put a function into this space and return its file descriptor, which the caller closes."""

    def info(self) -> IommuInfo:
        """Ask what can be mapped; there must be a device in the space."""

    def map(self, vaddr: int, iova: int, size_bytes: int, *, readable: bool, writable: bool) -> None:
        """Let the devices read, write, or both; the memory is pinned until `unmap`."""

    def unmap(self, iova: int, size_bytes: int) -> int:
        """Undo one `map` wholly and return how many bytes were mapped there, 0 if none."""

    def close(self) -> None:
        """Let go; mappings that are left go when the last device file is closed. Idempotent."""

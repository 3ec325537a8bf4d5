# SPDX-License-Identifier: MIT
"""The device's side of a mapping: what a device in software reads and writes memory with.

A device that knows what its dma_addr mean (a software IOMMU, a bounce buffer) offers it beside the four calls of
`DmaDevice`; hardware needs none. Invariant: a bus sees dma_addr only, no page and no vaddr.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pagepool.dma.device import DmaDevice
from pagepool.dma.layer import DmaLayer

__all__ = ["DmaBus", "bus_of"]


@runtime_checkable
class DmaBus(Protocol):
    """What a bus offers to a device in software."""

    def dma_write(self, dma_addr: int, data: Any) -> None:
        """Write bytes to memory, as the device."""

    def dma_read(self, dma_addr: int, size_bytes: int) -> bytes:
        """Read `size_bytes` bytes of memory, as the device."""


def bus_of(device: DmaDevice) -> DmaBus | None:
    """Return the bus of a device or of the first layer that has one; ``None`` where nobody can translate."""
    while not isinstance(device, DmaBus):
        if not isinstance(device, DmaLayer):
            return None
        device = device.inner
    return device

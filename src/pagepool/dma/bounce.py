# SPDX-License-Identifier: MIT
"""`Bounce`: bounce buffers, as swiotlb has them: the device gets memory of its own, and only a sync copies.

A missing sync cannot go unnoticed: the CPU reads what was there before, the device sends what was there before. It
judges nothing; in front of a `SoftIommu` the two do both. Invariant: the device never touches the CPU's memory, and
bytes move between the two sides in `map`, `sync_for_device` and `sync_for_cpu` only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import Any

from pagepool._core.params import DmaDir, MapGranularity
from pagepool.dma.bus import bus_of
from pagepool.dma.cpu_memory import copy_memory, is_memory, read_memory, write_memory
from pagepool.dma.device import DmaDevice
from pagepool.dma.layer import DmaLayer
from pagepool.dma.page_names import forget_stand_in, note_stand_in
from pagepool.errors import DeviceError

__all__ = ["Bounce"]


@dataclass(slots=True, eq=False)
class _Slot:
    """One mapping: where the CPU's bytes are, and the memory that stands for them."""

    dma_addr: int
    vaddr: int
    size_bytes: int
    shadow_vaddr: int
    shadow: mmap.mmap


class Bounce(DmaLayer):
    """Put bounce buffers in front of a device.

    Parameters
    ----------
    inner : DmaDevice
        Maps the buffers instead of the memory; it translates its dma_addr to them.

    Notes
    -----
    A map copies to the buffer, so that a device that writes part of a page leaves the rest as it was; an unmap copies
    nothing, as pools have it (they sync by hand). A sync for the CPU copies nothing of a ``TO_DEVICE`` mapping: the
    device cannot have written. Twice the memory, and a copy for each sync.

    Context: any thread. A range is synced and accessed by one thread at a time, as with any device.
    """

    def __init__(self, inner: DmaDevice) -> None:
        super().__init__(inner)
        self._lock = threading.RLock()  # see DmaLayer: a page may die in here
        self._slots: dict[int, _Slot] = {}
        self._starts: list[int] = []

    @property
    def granularity(self) -> MapGranularity:
        """That of the device behind, but slabs for a device that takes whole arenas: a second arena is too much."""
        inner = self.inner.granularity
        return MapGranularity.SLAB if inner is MapGranularity.ARENA else inner

    @property
    def needs_sync(self) -> bool:
        """True, whatever the device behind needs."""
        return True

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """The CPU: what the device behind has mapped are the buffers."""
        return 1, 0

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Make a buffer for a range, copy the range to it, and map the buffer."""
        if size_bytes <= 0 or not is_memory(vaddr, size_bytes):
            raise DeviceError(errno.EFAULT, "bounce", f"vaddr {vaddr:#x}", f"{size_bytes} bytes are no memory")
        shadow = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        shadow_vaddr = ctypes.addressof(ctypes.c_char.from_buffer(shadow))
        copy_memory(shadow_vaddr, vaddr, size_bytes)
        note_stand_in(shadow_vaddr, size_bytes, vaddr)
        try:
            dma_addr = super().map(shadow_vaddr, size_bytes, dma_dir)
        except BaseException:
            forget_stand_in(shadow_vaddr)
            raise
        with self._lock:
            self._slots[dma_addr] = _Slot(dma_addr, vaddr, size_bytes, shadow_vaddr, shadow)
            insort(self._starts, dma_addr)
        return dma_addr

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Unmap a buffer and free it; what was not synced by now is lost."""
        super().unmap(dma_addr, size_bytes, dma_dir)
        with self._lock:
            slot = self._slots.pop(dma_addr, None)
            if slot is not None:
                self._starts.remove(dma_addr)
                forget_stand_in(slot.shadow_vaddr)

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Copy from the buffer to the CPU's memory."""
        super().sync_for_cpu(dma_addr, size_bytes, dma_dir)
        slot, offset = self._find(dma_addr, size_bytes, both_sides=True)
        if dma_dir != DmaDir.TO_DEVICE:
            copy_memory(slot.vaddr + offset, slot.shadow_vaddr + offset, size_bytes)

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Copy from the CPU's memory to the buffer."""
        slot, offset = self._find(dma_addr, size_bytes, both_sides=True)
        copy_memory(slot.shadow_vaddr + offset, slot.vaddr + offset, size_bytes)
        super().sync_for_device(dma_addr, size_bytes, dma_dir)

    def dma_write(self, dma_addr: int, data: Any) -> None:
        """Write bytes to a buffer, as the device."""
        bus = bus_of(self.inner)
        if bus is not None:
            bus.dma_write(dma_addr, data)
            return
        payload = memoryview(data).tobytes()
        slot, offset = self._find(dma_addr, len(payload))
        write_memory(slot.shadow_vaddr + offset, payload)

    def dma_read(self, dma_addr: int, size_bytes: int) -> bytes:
        """Read bytes of a buffer, as the device."""
        bus = bus_of(self.inner)
        if bus is not None:
            return bus.dma_read(dma_addr, size_bytes)
        slot, offset = self._find(dma_addr, size_bytes)
        return read_memory(slot.shadow_vaddr + offset, size_bytes)

    def _find(self, dma_addr: int, size_bytes: int, *, both_sides: bool = False) -> tuple[_Slot, int]:
        with self._lock:
            at = bisect_right(self._starts, dma_addr)
            slot = self._slots[self._starts[at - 1]] if at else None
        if slot is None or size_bytes < 0 or dma_addr + size_bytes > slot.dma_addr + slot.size_bytes:
            raise DeviceError(errno.EFAULT, "bounce", f"dma_addr {dma_addr:#x}", f"{size_bytes} bytes are not mapped")
        offset = dma_addr - slot.dma_addr
        if both_sides and not is_memory(slot.vaddr + offset, size_bytes):
            raise DeviceError(errno.EFAULT, "bounce", f"vaddr {slot.vaddr + offset:#x}", "the memory went away")
        return slot, offset

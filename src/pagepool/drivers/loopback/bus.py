# SPDX-License-Identifier: MIT
"""How the software NIC reaches memory: by `dma_addr`, through a bus, and no other way.

The NIC never sees a page id or a vaddr. A bus that checks or translates (a software IOMMU) can stand here
unchanged. Invariant: an access that is not wholly inside memory the bus knows raises `BusError` and touches
nothing.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from pagepool._core.params import PAGE_SIZE
from pagepool.dma.bus import DmaBus, bus_of
from pagepool.errors import DeviceError
from pagepool.xdp import FrameMemory
from pagepool.xdp.driver import FramePool, U8Array

__all__ = ["BusError", "DmaBus", "HostBus", "bus_for", "read_frames", "write_frames"]

_Ints = npt.NDArray[Any]


class BusError(DeviceError):
    """The NIC accessed a `dma_addr` that is not its to access."""


class HostBus:
    """The bus of a `HostDevice`: ``dma_addr == vaddr``, and the memory is that of known pools.

    Parameters
    ----------
    *pools : FramePool
        Whose arenas can be reached; more by `attach`.

    Context: one thread at a time.
    """

    def __init__(self, *pools: FramePool) -> None:
        self._memories: list[tuple[int, int, FrameMemory]] = []
        for pool in pools:
            self.attach(pool)

    def attach(self, pool: FramePool) -> None:
        """Let the device reach the arena of a pool."""
        base, size_bytes = pool.arena.base_vaddr, pool.arena.size_bytes
        if all(known != base for known, _, _ in self._memories):
            self._memories.append((base, base + size_bytes, FrameMemory(pool)))

    def dma_write(self, dma_addr: int, data: Any) -> None:
        """Write bytes to memory."""
        source = np.frombuffer(data, np.uint8)
        self._bytes(dma_addr, len(source))[:] = source

    def dma_read(self, dma_addr: int, size_bytes: int) -> bytes:
        """Read bytes of memory."""
        return self._bytes(dma_addr, size_bytes).tobytes()

    def dma_write_rows(self, dma_addrs: _Ints, rows: U8Array, lengths: _Ints) -> None:
        """Write row ``i`` of a matrix to ``dma_addrs[i]``: one call for a burst, all of it in one arena.

        The bytes of a row beyond its length may be written too, as a device that writes whole bus bursts
        does.
        """
        memory, at = self._offsets(dma_addrs, rows.shape[1])
        columns = at & (PAGE_SIZE - 1)
        first, width = int(columns[0]), rows.shape[1]
        if first + width <= PAGE_SIZE and (columns == first).all():
            memory.rows[:, first : first + width][at >> 12] = rows
            return
        for start, row, length in zip(at.tolist(), rows, lengths.tolist(), strict=True):
            memory.flat[start : start + length] = row[:length]

    def _bytes(self, dma_addr: int, size_bytes: int) -> U8Array:
        for base, end, memory in self._memories:
            if base <= dma_addr and dma_addr + size_bytes <= end:
                return memory.flat[dma_addr - base : dma_addr - base + size_bytes]
        raise BusError(errno.EFAULT, "DMA at", f"dma_addr {dma_addr:#x}", f"{size_bytes} bytes are not there")

    def _offsets(self, dma_addrs: _Ints, width: int) -> tuple[FrameMemory, npt.NDArray[np.int64]]:
        probe = int(dma_addrs[0])
        for base, end, memory in self._memories:
            if base <= probe < end:
                at = dma_addrs - np.uint64(base)  # below the base it wraps round and is too large
                if int(at.max()) + width <= end - base:
                    return memory, at.view(np.int64)
        raise BusError(errno.EFAULT, "DMA at", f"dma_addr {probe:#x}", "a burst leaves the memory of its pool")


def write_frames(bus: DmaBus, dma_addrs: _Ints, rows: U8Array, lengths: _Ints) -> None:
    """Write a burst of frames, at once where the bus can, else one by one."""
    burst = getattr(bus, "dma_write_rows", None)
    if burst is not None:
        burst(dma_addrs, rows, lengths)
        return
    for dma_addr, row, length in zip(dma_addrs.tolist(), rows, lengths.tolist(), strict=True):
        bus.dma_write(dma_addr, row[:length].data)


def read_frames(bus: DmaBus, dma_addrs: _Ints, lengths: _Ints) -> list[bytes]:
    """Read frames."""
    return list(map(bus.dma_read, dma_addrs.tolist(), lengths.tolist()))


def bus_for(pool: FramePool) -> DmaBus:
    """Return the bus of a pool: its device's or that of a layer in front of it, else the host's.

    A device that translates and cannot read or write needs a bus of its own: on the host's, its first access is a
    `BusError`.
    """
    return bus_of(pool.params.dev) or HostBus(pool)

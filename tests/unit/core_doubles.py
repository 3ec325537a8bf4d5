# SPDX-License-Identifier: MIT
"""What the core's tests stand on: small allocators of their own, a two-node arena, awkward devices."""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable, Iterable
from typing import Any

from pagepool import DmaDir, MapGranularity, PageAllocator, PagePool, PPFlag
from pagepool._core.arena import Arena
from pagepool.dma import HostDevice

PAGE = 4096
SLAB = 2 << 20
PAGES_PER_SLAB = 512


def memory(slabs: int = 4, **options: Any) -> PageAllocator:
    """An allocator of the test's own: its counts begin at nothing."""
    return PageAllocator(slabs * SLAB, **options)


class NodeMemory:
    """Real memory whose slabs claim to be on the NUMA nodes they are given: ``NodeMemory(0, 1)`` has two slabs."""

    def __init__(self, *nids: int) -> None:
        self._map = mmap.mmap(-1, (len(nids) + 1) * SLAB)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.arena = Arena((start + SLAB - 1) // SLAB * SLAB, len(nids))
        self.arena.keep_alive = self._map
        for index, nid in enumerate(nids):
            self.arena.add_slab(index, nid)


def ids_of(values: Iterable[int]) -> array[int]:
    return array("I", values)


def used_pages(pool: PagePool) -> int:
    """4 KiB pages that the page allocator misses."""
    return pool.arena.nr_added_pages - pool.arena.nr_free_pages


def mapping(device: Any, sync: int = 0, **fields: Any) -> dict[str, Any]:
    """Fields of a pool that maps for `device`, and syncs `sync` bytes if that is more than none."""
    flags = PPFlag.DMA_MAP | (PPFlag.DMA_SYNC_DEV if sync else PPFlag(0))
    return {"flags": flags, "dev": device, "dma_dir": DmaDir.FROM_DEVICE, "max_len": sync, **fields}


class Scripted(HostDevice):
    """A device that maps page by page and runs a test's code in the middle of its calls."""

    def __init__(self, granularity: MapGranularity = MapGranularity.PAGE, needs_sync: bool = False) -> None:
        super().__init__("scripted", granularity=granularity, needs_sync=needs_sync)
        self.on_map: Callable[[int], object] | None = None
        self.on_unmap: Callable[[int], object] | None = None
        self.on_sync: Callable[[int], object] | None = None
        self.mapped: dict[int, int] = {}
        self.unmapped_twice: list[int] = []

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        if self.on_map is not None:
            self.on_map(vaddr)
        assert vaddr not in self.mapped, "mapped twice"
        self.mapped[vaddr] = size_bytes
        return vaddr

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        if self.mapped.pop(dma_addr, None) != size_bytes:
            self.unmapped_twice.append(dma_addr)
        if self.on_unmap is not None:
            self.on_unmap(dma_addr)

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        if self.on_sync is not None:
            self.on_sync(dma_addr)

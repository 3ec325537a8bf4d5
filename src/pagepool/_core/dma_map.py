# SPDX-License-Identifier: MIT
"""Where a device finds the slabs of one arena: the mappings that outlive every pool that used them.

One `DmaMap` joins one arena, one device and one direction. With granularity ``ARENA`` all memory is mapped by one
call, with ``SLAB`` each slab by one when its first page enters a pool; with ``PAGE`` this table stays empty and the
pool maps page by page. It is slow-path code: nothing here is touched by a recycled page but the table.
"""

import threading

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc

from pagepool._core.params import MapGranularity

_GRANULARITY = {MapGranularity.ARENA: MAP_ARENA, MapGranularity.SLAB: MAP_SLAB, MapGranularity.PAGE: MAP_PAGE}


class DmaMap:
    """Mappings of one arena for one device in one direction."""

    def __cinit__(self, base_vaddr: uint64_t, nr_slabs: uint32_t, dev, dma_dir):
        try:
            self.granularity = _GRANULARITY[dev.granularity]
        except (AttributeError, KeyError):
            raise TypeError(f"dev {dev!r} is no DmaDevice: it has no MapGranularity") from None
        self.dev = dev
        self.dma_dir = dma_dir
        self._base_vaddr = base_vaddr
        self._nr_slabs = nr_slabs
        self._lock = threading.Lock()
        self.slab_dma = cython.cast(cython.pointer[uint64_t], malloc(nr_slabs * cython.sizeof(uint64_t)))
        if self.slab_dma == cython.NULL:
            raise MemoryError("no memory for the table of mappings")
        i: uint32_t
        for i in range(nr_slabs):
            self.slab_dma[i] = NOT_MAPPED

    def __dealloc__(self):
        free(self.slab_dma)

    def ensure(self, slab):
        # Mapped before anyone can be given a page of it. The GIL is held; the lock keeps two pools from mapping twice.
        if self.slab_dma[slab] != NOT_MAPPED:
            return 0
        with self._lock:
            if self.slab_dma[slab] != NOT_MAPPED:
                return 0
            i: uint32_t
            base: uint64_t
            if self.granularity == MAP_ARENA:
                base = self.dev.map(self._base_vaddr, cython.cast(uint64_t, self._nr_slabs) << 21, self.dma_dir)
                self._arena_mapped = True
                for i in range(self._nr_slabs):
                    self.slab_dma[i] = base + (cython.cast(uint64_t, i) << 21)
            else:
                base = self.dev.map(self._base_vaddr + (cython.cast(uint64_t, slab) << 21), 1 << 21, self.dma_dir)
                self.slab_dma[slab] = base
            self.maps += 1
        return 0

    def unmap_slab(self, index: int) -> None:
        """Unmap one slab, if it was mapped on its own. No page of it may be lent."""
        slab: uint32_t = index
        with self._lock:
            if self.granularity != MAP_SLAB or self.slab_dma[slab] == NOT_MAPPED:
                return
            self.dev.unmap(self.slab_dma[slab], 1 << 21, self.dma_dir)
            self.slab_dma[slab] = NOT_MAPPED
            self.unmaps += 1

    def unmap_all(self) -> None:
        """Unmap everything: the device goes away. No page of the arena may be in its hands any more."""
        i: uint32_t
        if self.granularity == MAP_SLAB:
            for i in range(self._nr_slabs):
                self.unmap_slab(i)
        with self._lock:
            if self._arena_mapped:
                self.dev.unmap(self.slab_dma[0], cython.cast(uint64_t, self._nr_slabs) << 21, self.dma_dir)
                self._arena_mapped = False
                self.unmaps += 1
                for i in range(self._nr_slabs):
                    self.slab_dma[i] = NOT_MAPPED

    def __reduce__(self):
        raise TypeError("a DmaMap cannot be pickled")

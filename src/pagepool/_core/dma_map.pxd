# SPDX-License-Identifier: MIT
# Header of dma_map.py: where a device finds the slabs of an arena.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MAP_ARENA = 0
    MAP_SLAB = 1
    MAP_PAGE = 2

cdef extern from *:
    """
    #define NOT_MAPPED UINT64_MAX
    """
    const uint64_t NOT_MAPPED

cdef class DmaMap:
    cdef readonly object dev
    cdef readonly object dma_dir
    cdef readonly int granularity
    cdef readonly uint64_t maps           # map calls that worked
    cdef readonly uint64_t unmaps
    cdef uint64_t _base_vaddr
    cdef uint32_t _nr_slabs
    cdef uint64_t *slab_dma               # dma_addr of each slab, NOT_MAPPED where there is none
    cdef object _lock
    cdef bint _arena_mapped

    cdef int ensure(self, uint32_t slab) except -1

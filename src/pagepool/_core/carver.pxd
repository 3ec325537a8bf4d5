# SPDX-License-Identifier: MIT
# Header of carver.py: handles, and fragments of a page.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pagepool._core.page cimport Home, Page
from pagepool._core.tiers cimport Tiers

cdef enum:
    FRAG_BIAS = 1 << 22      # pool references taken up front for the page being carved, so that a carve is no atomic
    FRAG_ALIGN = 64          # bytes; a cache line, the kernel's dma_get_cache_alignment()

cdef class Carver(Tiers):
    cdef uint32_t frag_page               # the page being carved, or NO_PAGE
    cdef uint32_t frag_offset             # bytes already given away
    cdef uint32_t frag_users              # fragments carved from it
    cdef dict alloc_sites                 # id -> (monotonic seconds, text), where track=True; else None
    cdef dict put_sites
    cdef bint strict

    cdef Page new_page(self, uint32_t id, uint32_t kind, uint32_t offset, uint32_t length)
    cdef Page take_page(self)
    cdef Page carve(self, uint32_t size)
    cdef int drain_frag(self) except -1
    cdef int put_handle_slow(self, Page page, int64_t dma_sync_size, bint direct) except -1

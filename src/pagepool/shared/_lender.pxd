# SPDX-License-Identifier: MIT
# Header of _lender.py: the lender's own books, and its end of each pair of rings.
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from pagepool._core.arena cimport Arena, pp_page_t
from pagepool._core.page cimport Page
from pagepool._core.tiers cimport Tiers
from pagepool.shared._ring_layout cimport shared_frame_t, shared_ring_t

cdef enum:
    MAX_LINKS = 64
    BURST = 256              # pages that go out or come home under the lock at once
    NOGIL_FRAMES = 128       # from so many on, other Python threads run meanwhile
    RECALL_PAGES = 4096      # pages of the books looked at under the lock at once

@cython.final
cdef class Lender:
    cdef readonly Arena arena
    cdef pp_page_t *pages
    cdef uint32_t nr_pages
    cdef uint32_t lock                    # guards everything below, and the lender's side of every ring
    cdef uint16_t *shares                 # borrowers of each page; 0: it is not lent through us
    cdef dict sources                     # pool slot -> pool whose pages were lent
    cdef list links
    cdef uint32_t changes                 # of that list
    cdef readonly uint64_t rejected       # pages that were not the caller's to lend

    cdef int _targets(self, tuple links, void **targets, uint32_t n) except -1
    cdef uint32_t _lend(self, void **links, int nr_links, Tiers pool, const uint32_t *ids, const uint32_t *lengths,
                        const uint32_t *offsets, uint32_t n, uint32_t offset, uint32_t queue,
                        const uint64_t *stamps) noexcept nogil
    cdef uint32_t _mark(self, Tiers pool, const uint32_t *ids, const uint32_t *lengths, const uint32_t *offsets,
                        uint32_t n, uint32_t offset, shared_frame_t *frames) noexcept nogil
    cdef int _go_home(self, uint32_t *ids, uint32_t n) except -1

@cython.final
cdef class Link:
    cdef readonly Lender lender
    cdef object keep_alive                # the rings' mapping
    cdef shared_ring_t ring
    cdef uint8_t *held                    # 1 for each page that this borrower has
    cdef uint32_t *since_ms               # when it got it, after `start_ns`
    cdef uint64_t start_ns
    cdef int bell_fd
    cdef uint32_t state                   # LINK_*, as it was said
    cdef uint32_t sent_mine
    cdef uint32_t reaped_mine
    cdef readonly uint32_t outstanding    # pages with this borrower
    cdef readonly bint open               # pages may be lent
    cdef readonly bint dead               # everything was recalled
    cdef readonly uint64_t sent
    cdef readonly uint64_t returned
    cdef readonly uint64_t recalled
    cdef readonly uint64_t backpressure   # frames that found no room
    cdef readonly uint64_t bad_ids        # returned ids that are no page
    cdef readonly uint64_t bad_returns    # returned pages that this borrower has not: never lent, or twice
    cdef readonly uint64_t bad_indexes    # looks at an index that cannot be
    cdef readonly uint64_t bells          # times it was woken

    cdef uint32_t _room(self) noexcept nogil
    cdef void _put(self, const shared_frame_t *frames, uint32_t n, uint32_t queue, const uint64_t *stamps,
                   uint64_t now) noexcept nogil
    cdef void _refuse(self, uint32_t n) noexcept nogil
    cdef void _publish(self) noexcept nogil
    cdef uint32_t _reap(self, uint32_t *home, uint32_t *looked) noexcept nogil
    cdef uint32_t _recall(self, uint32_t *at, uint32_t *home) noexcept nogil

cdef int _get(object values, Py_buffer *view, int item_bytes) except -1

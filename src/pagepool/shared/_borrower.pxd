# SPDX-License-Identifier: MIT
# Header of _borrower.py: the borrower's end of the rings, and the handle of one borrowed page.
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from pagepool.shared._ring_layout cimport shared_ring_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    int MSG_DONTWAIT

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)

cdef enum:
    NOGIL_FRAMES = 128       # from this budget on, other Python threads run meanwhile
    HELD_MAX = 0xFFFF
    MOST_BELLS = 64          # messages read away at once

# No object among the fields of these two, so the garbage collector neither sees nor clears them: a page gives itself back
# at its very end, through a borrower that must be whole then, into rings that must be mapped. What they refer to refers to
# nothing, so there is no cycle to miss.
@cython.final
cdef class Borrower:
    cdef PyObject *keep_alive             # the mappings of arena and rings: a reference owned
    cdef uintptr_t base_vaddr
    cdef uint32_t nr_pages
    cdef uint32_t object_bytes
    cdef uint32_t order_mask
    cdef readonly bint writable
    cdef shared_ring_t ring
    cdef uint32_t lock                    # guards all below; pages are given back by any thread
    cdef uint16_t *held                   # how often each page was lent to us and not given back
    cdef uintptr_t owner                  # thread that takes; 0 until the first does
    cdef int bell_fd                      # owned
    cdef uint32_t taken_mine
    cdef uint32_t given_mine
    cdef bint abandoned                   # in a forked child: the rings are the parent's
    cdef readonly bint closed
    cdef readonly uint32_t lent           # pages with us
    cdef readonly int64_t offset          # of all frames of the last take, -1 where they differ
    cdef readonly uint64_t taken
    cdef readonly uint64_t given
    cdef readonly uint64_t rejected       # ids given back that we have not
    cdef readonly uint64_t bad_descriptors
    cdef readonly uint64_t bad_indexes
    cdef readonly uint64_t bells          # times the lender was woken

    cdef int64_t _take(self, uint32_t *ids, uint32_t *lengths, uint32_t *offsets, uint32_t *queues, uint64_t *stamps,
                       uint32_t budget) noexcept nogil
    cdef uint32_t _give(self, const uint32_t *ids, uint32_t n) noexcept nogil
    cdef void _give_locked(self, uint32_t id) noexcept nogil
    cdef void _publish_locked(self) noexcept nogil
    cdef void _hang_up_locked(self) noexcept nogil

@cython.final
cdef class BorrowedPage:
    cdef PyObject *home                   # the Borrower: a reference owned
    cdef readonly uint32_t id
    cdef readonly uint32_t offset
    cdef uint32_t length
    cdef uint32_t exports
    cdef uint32_t live                    # 1 until put; taken by an exchange
    cdef uint32_t owed                    # 1 while the page is still to be given back

    cdef int _must_live(self) except -1
    cdef int _give_back(self) except -1

cdef inline Borrower home_of(BorrowedPage page):
    return <Borrower>page.home

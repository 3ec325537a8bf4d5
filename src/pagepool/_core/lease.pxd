# SPDX-License-Identifier: MIT
# Header of lease.py: references to pages by id, and the buffer over them.
cimport cython
from libc.stdint cimport int64_t, uint32_t

from pagepool._core.tiers cimport Tiers

# Not traversed by the garbage collector, as Page is not: its pool must be whole when it dies, and a pool that was found
# in a cycle is cleared before. So a cycle through a live lease leaks until it is broken.
@cython.final
@cython.no_gc
cdef class Lease:
    cdef readonly Tiers pool
    cdef uint32_t *_ids
    cdef uint32_t _n                      # references held
    cdef readonly uint32_t offset         # bytes from a page's first byte to the row's
    cdef readonly uint32_t length         # bytes of a row
    cdef bint flat                        # one page, asked for by its number: one dimension
    cdef readonly bint strided            # the pages lie at equal distances: there is a buffer over them
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]

    cdef int take(self, uint32_t id) except -1
    cdef int measure(self) except -1
    cdef char *_at(self) noexcept
    cdef int _must_be_strided(self) except -1

cdef Lease new_lease(Tiers pool, const uint32_t *ids, uint32_t n, uint32_t offset, uint32_t length, bint flat)

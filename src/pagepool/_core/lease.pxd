# SPDX-License-Identifier: MIT
# Header of lease.py: references to pages by id, and the buffer over them.
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from pagepool._core.tiers cimport Tiers

# No object among its fields, as Page: so the garbage collector does not traverse it, and never clears a pool that it
# found in a cycle before the lease could give back. A cycle through a live lease leaks until it is broken.
@cython.final
cdef class Lease:
    cdef PyObject *home                   # the pool: a reference owned while the object lives; NULL where there is none
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
    cdef int _must_be_made(self) except -1
    cdef int _must_be_strided(self) except -1

cdef inline Tiers pool_of(Lease lease):
    return <Tiers>lease.home

cdef Lease new_lease(Tiers pool, const uint32_t *ids, uint32_t n, uint32_t offset, uint32_t length, bint flat)

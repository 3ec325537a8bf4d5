# SPDX-License-Identifier: MIT
# Header of page_pool.py: the pool itself.
from libc.stdint cimport uint32_t, uint64_t

cimport cython

from pagepool._core.carver cimport Carver
from pagepool._core.page cimport Page

cdef class PagePool(Carver):
    cdef readonly object params
    cdef readonly object memory           # the PageAllocator
    cdef readonly uint32_t id
    cdef readonly int users               # creator, registrations; the last to go destroys
    cdef readonly object detach_time      # monotonic seconds of close() with pages out, or None
    cdef bint _creator
    cdef object __weakref__

    @cython.final
    cdef Page take_cached(self)
    cdef int crossed(self) except -1
    cdef int _note_puts(self, const uint32_t *ids, uint32_t n) except -1
    cdef int _after_bulk(self, uint32_t *ids, uint32_t n) except -1
    cdef int destroy(self) except -1
    cdef list lent_ids(self)
    cdef dict count_words(self)

cdef int _get_ids(object ids, Py_buffer *view, int flags) except -1

# SPDX-License-Identifier: MIT
# Header of bulk.py: arrays of ids.
from cpython.array cimport array as c_array
from libc.stdint cimport int64_t, uint32_t

from pagepool._core.control cimport Control

cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object o, void *exception) except? -1

cdef enum:
    NOGIL_PAGES = 2048       # from here on a call lets other Python threads run; why not below: docs/design.md

cdef class Bulk(Control):
    cdef object _new_ids(self, object asked)
    cdef bint _in_cache(self, c_array out) noexcept
    cdef uint32_t _take_cached(self, c_array out) noexcept
    cdef int64_t _take_many(self, uint32_t *at, uint32_t n) except -1
    cdef bint _fits_cache(self, c_array ids) noexcept
    cdef int64_t _put_many(self, const uint32_t *at, uint32_t n, int64_t dma_sync_size) except -1
    cdef int _note_puts(self, const uint32_t *ids, uint32_t n) except -1
    cdef int _after_bulk(self, uint32_t *ids, uint32_t n) except -1

cdef int _get_ids(object ids, Py_buffer *view, int flags) except -1

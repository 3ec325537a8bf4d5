# SPDX-License-Identifier: MIT
# Header of bulk.py: arrays of ids.
from libc.stdint cimport uint32_t

from pagepool._core.control cimport Control

cdef class Bulk(Control):
    cdef int _after_bulk(self, uint32_t *ids, uint32_t n) except -1

cdef int _get_ids(object ids, Py_buffer *view, int flags) except -1

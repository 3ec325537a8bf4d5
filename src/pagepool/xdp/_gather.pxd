# SPDX-License-Identifier: MIT
# Header of _gather.py: the same few bytes of many pages, one after the other.
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PAGE_SHIFT = 12
    NOGIL_FRAMES = 2048      # from so many on, other Python threads run meanwhile; why: docs/design.md

@cython.final
cdef class PageWindow:
    cdef Py_buffer view                   # the arena's bytes; keeps it alive
    cdef bint has_view

cdef uint64_t copy_out(const uint8_t *base, uint64_t limit, const uint32_t *ids, uint64_t n, uint64_t width,
                       uint8_t *out) noexcept nogil

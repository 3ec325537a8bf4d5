# SPDX-License-Identifier: MIT
# Header of mapped_range.py.
cimport cython
from libc.stdint cimport uint64_t, uintptr_t

cdef extern from "<sys/mman.h>" nogil:
    int munmap(void *vaddr, size_t size)

@cython.final
cdef class MappedRange:
    cdef readonly uintptr_t vaddr
    cdef readonly uint64_t size_bytes
    cdef object __weakref__

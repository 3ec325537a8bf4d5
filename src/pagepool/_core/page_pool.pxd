# SPDX-License-Identifier: MIT
# Header of page_pool.py: the pool itself.
cimport cython

from pagepool._core.bulk cimport Bulk
from pagepool._core.page cimport Page

cdef class PagePool(Bulk):
    cdef readonly object params           # PagePoolParams, checked
    cdef readonly object memory           # the PageAllocator
    cdef object __weakref__

    @cython.final
    cdef Page take_cached(self)

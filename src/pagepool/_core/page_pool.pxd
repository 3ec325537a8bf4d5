# SPDX-License-Identifier: MIT
# Header of page_pool.py: the pool itself.
from pagepool._core.bulk cimport Bulk

cdef class PagePool(Bulk):
    cdef readonly object params           # PagePoolParams, checked
    cdef readonly object memory           # the PageAllocator
    cdef object __weakref__

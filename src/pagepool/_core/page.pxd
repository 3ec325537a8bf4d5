# SPDX-License-Identifier: MIT
# Header of page.py: the handle, and what it knows of its pool.
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from pagepool._core.arena cimport Arena, pp_page_t

cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object o, void *exception) except? -1

cdef class Home:
    # What a page needs of its pool, and nothing more: Tiers and PagePool grow from here.
    cdef readonly Arena arena
    cdef pp_page_t *pages                 # arena.pages, one load nearer
    cdef uint32_t nr_pages                # arena.nr_pages
    cdef uint32_t slot                    # this pool's number in the words of its pages
    cdef readonly uint32_t object_bytes
    cdef bint is_watched                  # the device wants to know when the CPU looks: a debugger

    # The pool's side of a handle.
    cdef int handle_put(self, Page page, int64_t dma_sync_size, bint allow_direct) except -1
    cdef int export_ended(self, Page page, uint32_t kind) except -1
    cdef uint64_t dma_addr_of(self, uint32_t id) except? 0xFFFFFFFFFFFFFFFF
    cdef int cpu_looks(self, Page page, Py_ssize_t index, Py_ssize_t size_bytes) except -1
    cdef str where_put(self, uint32_t id)
    cdef tuple dlpack_device(self)
    cdef Page reader(self, Page page)

cdef enum:
    KIND_HOLDER = 0          # holds the page for the pool's user
    KIND_FRAGMENT = 1        # holds one pool reference of a page that was carved
    KIND_FOREIGN = 2         # holds one foreign reference (get_page)
    KIND_DETACHED = 3        # was a holder; release_page took the page out of the pool

# No object among its fields, so no garbage collector's header and no traversal: a page refers to its pool through
# `home`, and a pool never to its pages. A cycle through a live page (an observer that keeps it) leaks until it is broken.
@cython.final
cdef class Page:
    cdef PyObject *home                   # the pool: a reference owned while the object lives (see carver.py)
    cdef readonly uint32_t id
    cdef readonly uint32_t generation
    cdef uint32_t live                    # 1 until put; taken by an exchange, so only one put wins
    cdef uint32_t kind
    cdef readonly uint32_t offset         # bytes from the start of the object
    cdef uint32_t length                  # bytes
    cdef uint32_t exports                 # buffers that are out
    cdef readonly bint readonly           # the CPU must not write through this handle

    cdef char *_at(self, Py_ssize_t index) except NULL
    cdef char *_byte(self, object key) except NULL
    cdef int _take_reference(self) except -1
    cdef int _must_live(self) except -1
    cdef bint _mine(self) noexcept

cdef inline Home home_of(Page page):
    return <Home>page.home

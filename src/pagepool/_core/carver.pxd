# SPDX-License-Identifier: MIT
# Header of carver.py: handles, and fragments of a page.
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pagepool._core.page cimport Home, Page
from pagepool._core.tiers cimport Tiers

cdef enum:
    FRAG_BIAS = 1 << 22      # pool references taken up front for the page being carved, so that a carve is no atomic
    FRAG_ALIGN = 64          # bytes; a cache line, the kernel's dma_get_cache_alignment()

    KEPT_HANDLES = 256       # dead Page objects a pool keeps the memory of

cdef extern from "page_slots.h":
    void pp_page_install(PyTypeObject *type, void (*died)(PyObject *) noexcept)
    object pp_page_make(PyTypeObject *type, tuple no_args)
    PyObject *pp_page_revive(PyObject *page)
    void pp_page_forget(PyObject *page)
    void pp_page_free(PyObject *page)
    void pp_page_uncount(PyObject *page)
    void Py_SET_REFCNT(PyObject *page, Py_ssize_t n)
    Py_ssize_t pp_refcnt "Py_REFCNT"(PyObject *page)

cdef void page_died(PyObject *page) noexcept

cdef class Carver(Tiers):
    cdef uint32_t n_kept
    cdef PyObject *kept[KEPT_HANDLES]     # memory of dead handles; their `home` is not counted
    cdef uint32_t frag_page               # the page being carved, or NO_PAGE
    cdef uint32_t frag_offset             # bytes already given away
    cdef uint32_t frag_users              # fragments carved from it
    cdef dict alloc_sites                 # id -> (monotonic seconds, text), where track=True; else None
    cdef dict put_sites
    cdef bint strict

    cdef void bury(self, Page page) noexcept
    cdef int handle_died(self, Page page) except -1
    cdef Page new_page(self, uint32_t id, uint32_t kind, uint32_t offset, uint32_t length)
    cdef Page take_page(self)
    cdef Page carve(self, uint32_t size, bint whole_tail)
    cdef bint start_frag(self) except -1
    cdef bint frag_idle(self) noexcept
    cdef int drain_frag(self) except -1
    cdef Page foreign(self, Page page)
    cdef bint detach(self, Page page) except -1
    cdef int put_handle_slow(self, Page page, int64_t dma_sync_size, bint direct) except -1

# SPDX-License-Identifier: MIT
# Header of _holding.py: what holds the pages that Arrow has, for C functions that any thread may call.
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from pagepool._core.tiers cimport Tiers

# A pool that has holdings. They share one Python reference to it, because that cannot be dropped without the GIL.
ctypedef struct pp_anchor_t:
    PyObject *pool           # a reference owned
    uint32_t holdings        # guarded by anchors_lock
    uint32_t nr_pages        # of them all
    pp_anchor_t *next

cdef enum:
    HOME_RING = 0            # a pool's ring, which takes plain pages from any thread without the GIL
    HOME_REFERENCE = 1       # a pool: each page has one pool reference more, which goes
    HOME_PUT_BULK = 2        # any object with put_bulk(ids)
    HOME_OBJECT = 3          # any object that holds pages by itself: the reference to it goes
    HOME_NONE = 4            # there are no pages, only memory for arrays

ctypedef struct pp_holding_t:
    uint32_t refs            # atomic
    uint32_t kind
    uint32_t nr_ids
    uint32_t *ids            # in `block`, behind the arrays
    PyObject *home           # a reference owned; the anchor's where there is one; of HOME_NONE NULL
    pp_anchor_t *anchor      # of HOME_RING and HOME_REFERENCE
    char *block              # memory for arrays, 64-byte aligned
    Py_ssize_t size_bytes    # of it, without the ids

cdef enum:
    MINUS_ONE = 0xFFFFFFFF   # added to an unsigned count, it takes one away
    ALIGN_BYTES = 64         # what Arrow recommends for buffers

cdef pp_anchor_t *anchors    # those with holdings, and those that wait for `_sweep`
cdef uint32_t anchors_lock
cdef uint32_t sweep_asked

cdef void holding_get(pp_holding_t *holding) noexcept nogil
cdef void holding_put(pp_holding_t *holding) noexcept nogil

cdef void _go_home(pp_holding_t *holding) noexcept nogil
cdef int _put_rest(pp_holding_t *holding, uint32_t done) noexcept
cdef int _put_ids(pp_holding_t *holding, uint32_t done) noexcept
cdef int _put_reference(Tiers pool, uint32_t id) noexcept
cdef void _free_holding(pp_holding_t *holding) noexcept nogil
cdef pp_anchor_t *_anchor_of(object pool, uint32_t nr_pages) except NULL
cdef void _let_go(pp_anchor_t *anchor, uint32_t nr_pages) noexcept nogil
cdef int _sweep(void *unused) noexcept
cdef int _take_references(pp_holding_t *holding) except -1

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void *) noexcept, void *argument) nogil

cdef class Holding:
    cdef pp_holding_t *holding
    cdef int _make(self, object home, uint32_t kind, void *ids, uint32_t n, Py_ssize_t size_bytes) except -1

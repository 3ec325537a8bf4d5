# SPDX-License-Identifier: MIT
"""`Holding`: pages that Arrow has, and how they come home when its last reference goes.

An Arrow consumer drops its arrays in any thread, with the GIL or without, and at the end of the interpreter too. So
what holds the pages is a C structure with an atomic count, and for plain pages its end needs no Python: they go to
their pool's ring, as from any thread. The GIL is taken only where something is special (a full ring, a closed pool, one
that is tracked or synced for a device, a page that others hold too), and by no thread of another library's once the
interpreter is ending (`exit_gate`): from then on pages stay lent and their memory stays mapped.

It is not a `Lease` of the core: that takes a reference beside the owner's, a holding owns its pages, unless `shared`.
It knows no Arrow; `_c_data` makes arrays that point into a holding. Invariant: each page of a holding goes home exactly
once, with the last reference; until then its pool, and so the arena under it, is alive.
"""

import os

import cython
from cython.cimports.cpython.buffer import PyBUF_ND, PyBUF_READ, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.cpython.exc import PyErr_Fetch, PyErr_Restore
from cython.cimports.cpython.memoryview import PyMemoryView_FromMemory
from cython.cimports.cpython.object import PyObject
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.libc.stdint import uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.pagepool._core.arena import PG_LENT, PG_REF_MAX, PG_REF_SHIFT, PG_SPENT, pg_refs, pg_slot, pg_state
from cython.cimports.pagepool._core.atomic import (
    pp_add32,
    pp_cas64,
    pp_load32_acquire,
    pp_load64,
    pp_lock,
    pp_store32_release,
    pp_unlock,
)
from cython.cimports.pagepool._core.exit_gate import enter_python, leave_python
from cython.cimports.pagepool._core.tiers import Tiers
from cython.cimports.posix.stdlib import posix_memalign

from pagepool.errors import ForeignPageError

if not cython.compiled:
    raise ImportError("pagepool.integrations.arrow._holding is compiled: run `make build`, or `pip install .`")


def _after_fork():
    # A thread that had the lock is not in the child.
    pp_store32_release(cython.address(anchors_lock), 0)


os.register_at_fork(after_in_child=_after_fork)


# -- references --------------------------------------------------------------------------------------------------


def holding_get(holding):
    pp_add32(cython.address(holding.refs), 1)


def holding_put(holding):
    if pp_add32(cython.address(holding.refs), MINUS_ONE) == 1:
        _go_home(holding)


def _go_home(holding):
    done: uint32_t = 0
    if holding.kind == HOME_NONE:
        _free_holding(holding)
        return
    if not enter_python():
        return
    pool: cython.pointer[PyObject] = holding.home
    if holding.kind == HOME_RING and not cython.cast(Tiers, pool).track and not cython.cast(Tiers, pool).sync:
        done = cython.cast(Tiers, pool).ring_run(holding.ids, holding.nr_ids)
    if holding.kind != HOME_RING or done < holding.nr_ids:
        with cython.gil:
            _put_rest(holding, done)
    if holding.anchor != cython.NULL:
        _let_go(holding.anchor, holding.nr_ids)
    _free_holding(holding)
    leave_python()


def _put_rest(holding, done):
    # With the GIL. The caller may be a finalizer with an exception of its own on the way: it is put aside.
    kind: cython.pointer[PyObject] = cython.NULL
    value: cython.pointer[PyObject] = cython.NULL
    trace: cython.pointer[PyObject] = cython.NULL
    PyErr_Fetch(cython.address(kind), cython.address(value), cython.address(trace))
    _put_ids(holding, done)
    if holding.anchor == cython.NULL:
        Py_DECREF(cython.cast(object, holding.home))
    PyErr_Restore(kind, value, trace)
    return 0


def _put_ids(holding, done):
    # What is raised here goes to sys.unraisablehook: whoever called is a C function of another library.
    i: uint32_t
    if holding.kind == HOME_REFERENCE:
        for i in range(holding.nr_ids):
            _put_reference(cython.cast(Tiers, holding.home), holding.ids[i])
    elif holding.kind == HOME_RING and not cython.cast(Tiers, holding.home).track:
        # Never as the owner, who this thread may be: another may want to become it while a large put runs.
        cython.cast(Tiers, holding.home).put_ids(holding.ids + done, holding.nr_ids - done, -1, False)
        cython.cast(Tiers, holding.home).raise_pending()
    elif holding.kind != HOME_OBJECT:
        rest = PyMemoryView_FromMemory(
            cython.cast(cython.p_char, holding.ids + done),
            cython.cast(cython.Py_ssize_t, holding.nr_ids - done) * 4,
            PyBUF_READ,
        )
        cython.cast(object, holding.home).put_bulk(rest.cast("I"))
    return 0


def _put_reference(pool, id):
    pool.put_id(id, -1, False, False, cython.NULL)
    return 0


def _free_holding(holding):
    free(holding.block)
    free(holding)


# -- the one Python reference to a pool that all its holdings share --------------------------------------------------


def _anchor_of(pool, nr_pages):
    # With the GIL.
    global anchors
    home: cython.pointer[PyObject] = cython.cast(cython.pointer[PyObject], pool)
    spare: cython.pointer[pp_anchor_t] = cython.cast(cython.pointer[pp_anchor_t], calloc(1, cython.sizeof(pp_anchor_t)))
    if spare == cython.NULL:
        raise MemoryError("no memory to remember the pool")
    pp_lock(cython.address(anchors_lock))
    found: cython.pointer[pp_anchor_t] = anchors
    while found != cython.NULL and found.pool != home:
        found = found.next
    if found == cython.NULL:
        found = spare
        spare = cython.NULL
        Py_INCREF(pool)
        found.pool = home
        found.next = anchors
        anchors = found
    found.holdings += 1
    found.nr_pages += nr_pages
    pp_unlock(cython.address(anchors_lock))
    free(spare)
    return found


def _let_go(anchor, nr_pages):
    # Without the GIL a reference cannot be dropped: the main thread does it, as soon as it runs Python again. Until
    # then a pool lives a little longer; should the queue of such calls be full, until the next holding goes.
    global sweep_asked
    ask: cython.bint = False
    pp_lock(cython.address(anchors_lock))
    anchor.holdings -= 1
    anchor.nr_pages -= nr_pages
    if anchor.holdings == 0 and not sweep_asked:
        sweep_asked = ask = True
    pp_unlock(cython.address(anchors_lock))
    if ask and Py_AddPendingCall(_sweep, cython.NULL) != 0:
        pp_store32_release(cython.address(sweep_asked), 0)


def _sweep(unused):
    global anchors, sweep_asked
    idle: cython.pointer[pp_anchor_t] = cython.NULL
    one: cython.pointer[pp_anchor_t]
    at: cython.pointer[cython.pointer[pp_anchor_t]]
    pp_lock(cython.address(anchors_lock))
    sweep_asked = 0
    at = cython.address(anchors)
    while at[0] != cython.NULL:
        one = at[0]
        if one.holdings == 0:
            at[0] = one.next
            one.next = idle
            idle = one
        else:
            at = cython.address(one.next)
    pp_unlock(cython.address(anchors_lock))
    while idle != cython.NULL:
        one = idle
        idle = one.next
        Py_DECREF(cython.cast(object, one.pool))
        free(one)
    return 0


def held_pages(pool) -> int:
    """Pages of a pool that holdings hold now, whoever made them. Context: any thread."""
    home: cython.pointer[PyObject] = cython.cast(cython.pointer[PyObject], pool)
    held: uint32_t = 0
    pp_lock(cython.address(anchors_lock))
    at: cython.pointer[pp_anchor_t] = anchors
    while at != cython.NULL:
        if at.pool == home:
            held = at.nr_pages
        at = at.next
    pp_unlock(cython.address(anchors_lock))
    return held


# -- for Python --------------------------------------------------------------------------------------------------


class Holding:
    """Pages that belong to whoever refers to this, from Python or from C, and memory for arrays that describe them.

    Parameters
    ----------
    home : PagePool, object with ``put_bulk(ids)``, any object, or None
        Where the pages go in the end. Without `ids`, what holds them by itself: it is let go of in the end. None where
        there are no pages.
    ids : buffer of uint32, optional
        Pages that the caller owns, and the holding from now on; with `shared`, pages that stay the caller's.
    size_bytes : int
        Memory for arrays, aligned to 64 bytes; this object is a writable buffer of it. Not cleared.
    shared : bool
        Take one more pool reference of each page instead of the pages: they go home when both have let go of them.

    Raises
    ------
    ForeignPageError
        `shared`, and a page is not lent by the pool.
    MemoryError
        And the pages are still the caller's, as after any error.

    Notes
    -----
    Context: any thread; its end, too.
    """

    def __cinit__(self, home, ids=None, size_bytes: cython.Py_ssize_t = 0, shared: cython.bint = False):
        view: Py_buffer
        if size_bytes < 0:
            raise ValueError(f"size_bytes {size_bytes} is negative")
        if ids is None:
            self._make(home, HOME_NONE if home is None else HOME_OBJECT, cython.NULL, 0, size_bytes)
            return
        kind: uint32_t = HOME_PUT_BULK
        if isinstance(home, Tiers):
            kind = HOME_REFERENCE if shared else HOME_RING
        elif shared or not callable(getattr(home, "put_bulk", None)):
            raise TypeError(f"pages cannot be {'shared with' if shared else 'put to'} {type(home).__name__}")
        PyObject_GetBuffer(ids, cython.address(view), PyBUF_ND)
        try:
            if view.itemsize != 4:
                raise TypeError(f"ids must be a contiguous buffer of uint32, not of {view.itemsize}-byte items")
            if view.len // 4 > (cython.cast(Tiers, home).nr_pages if kind != HOME_PUT_BULK else 0xFFFFFFFF):
                raise ValueError(f"{view.len // 4} ids are more than there are pages")
            self._make(home, kind, view.buf, cython.cast(uint32_t, view.len // 4), size_bytes)
        finally:
            PyBuffer_Release(cython.address(view))

    def _make(self, home, kind, ids, n, size_bytes):
        bytes_ids: cython.size_t = cython.cast(cython.size_t, n) * cython.sizeof(uint32_t)
        room: cython.size_t = (cython.cast(cython.size_t, size_bytes) + ALIGN_BYTES - 1) // ALIGN_BYTES * ALIGN_BYTES
        block: cython.p_void = cython.NULL
        holding: cython.pointer[pp_holding_t] = cython.cast(
            cython.pointer[pp_holding_t], calloc(1, cython.sizeof(pp_holding_t))
        )
        if holding == cython.NULL or posix_memalign(cython.address(block), ALIGN_BYTES, room + bytes_ids + ALIGN_BYTES):
            free(holding)
            raise MemoryError(f"no memory for {size_bytes} bytes of arrays")
        holding.block = cython.cast(cython.p_char, block)
        holding.size_bytes = size_bytes
        holding.kind = kind
        holding.refs = 1
        holding.ids = cython.cast(cython.pointer[uint32_t], holding.block + room)
        holding.nr_ids = n
        if n:
            memcpy(holding.ids, ids, bytes_ids)
        if kind != HOME_NONE:
            holding.home = cython.cast(cython.pointer[PyObject], home)
        try:
            if kind == HOME_RING or kind == HOME_REFERENCE:
                holding.anchor = _anchor_of(home, n)
            if kind == HOME_REFERENCE:
                _take_references(holding)
        except BaseException:
            if holding.anchor != cython.NULL:
                _let_go(holding.anchor, n)
            _free_holding(holding)
            raise
        if kind == HOME_PUT_BULK or kind == HOME_OBJECT:
            Py_INCREF(home)
        self.holding = holding
        return 0

    def __dealloc__(self):
        if self.holding != cython.NULL:
            holding_put(self.holding)

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        PyBuffer_FillInfo(buffer, self, self.holding.block, self.holding.size_bytes, False, flags)

    @property
    def vaddr(self) -> int:
        """Where its memory begins."""
        return cython.cast(uintptr_t, self.holding.block)

    @property
    def nr_ids(self) -> int:
        """Pages it holds by id."""
        return self.holding.nr_ids

    @property
    def refcount(self) -> int:
        """References to it: this object, and those of Arrow arrays."""
        return pp_load32_acquire(cython.address(self.holding.refs))

    def __reduce__(self):
        raise TypeError("a Holding is memory of this process and cannot be pickled")


def _take_references(holding):
    pool: Tiers = cython.cast(Tiers, holding.home)
    one: uint64_t = cython.cast(uint64_t, 1) << PG_REF_SHIFT
    i: uint32_t = 0
    id: uint32_t
    word: uint64_t
    while i < holding.nr_ids:
        id = holding.ids[i]
        word = pp_load64(cython.address(pool.pages[id].word)) if id < pool.nr_pages else 0
        # Spent: the owner of the id has put it, and only views keep it lent.
        if pg_state(word) != PG_LENT or pg_slot(word) != pool.slot or word & PG_SPENT or pg_refs(word) == PG_REF_MAX:
            holding.nr_ids = i
            for i in range(holding.nr_ids):
                _put_reference(pool, holding.ids[i])
            raise ForeignPageError(f"page {id} is not lent by {pool!r}")
        if pp_cas64(cython.address(pool.pages[id].word), word, word + one):
            i += 1
    return 0

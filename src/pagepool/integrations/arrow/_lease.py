# SPDX-License-Identifier: MIT
"""`Lease`: pages that Arrow has, and how they come home when its last reference goes.

An Arrow consumer drops its arrays in any thread, with the GIL or without, and at the end of the interpreter too. So
what holds the pages is a C structure with an atomic count, and for plain pages its end needs no Python: they go to
their pool's ring, as from any thread. The GIL is taken only where something is special (a full ring, a closed pool, one
that is tracked or synced for a device, a page that others hold too), and never once the interpreter is ending: from
then on pages stay lent and their memory stays mapped.

It knows no Arrow; `_c_data` makes arrays that point into a lease. Invariant: each page of a lease goes home exactly
once, with the last reference; until then its pool, and so the arena under it, is alive.
"""

import atexit
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
from cython.cimports.pagepool._core.arena import PG_LENT, PG_REF_MAX, PG_REF_SHIFT, pg_refs, pg_slot, pg_state
from cython.cimports.pagepool._core.atomic import (
    pp_add32,
    pp_cas64,
    pp_load32_acquire,
    pp_load64,
    pp_lock,
    pp_store32_release,
    pp_unlock,
)
from cython.cimports.pagepool._core.tiers import Tiers
from cython.cimports.posix.stdlib import posix_memalign
from cython.cimports.posix.unistd import usleep

from pagepool.errors import ForeignPageError

if not cython.compiled:
    raise ImportError("pagepool.integrations.arrow._lease is compiled: run `make build`, or `pip install .`")


# -- the end of the interpreter ----------------------------------------------------------------------------------


def python_enter():
    pp_add32(cython.address(inside), 1)
    if pp_load32_acquire(cython.address(ending)) == 0:
        return True
    pp_add32(cython.address(inside), MINUS_ONE)
    return False


def python_leave():
    pp_add32(cython.address(inside), MINUS_ONE)


def _end():
    # Whoever is inside may be waiting for the GIL: close the door behind them, and let them have it.
    pp_add32(cython.address(ending), 1)
    with cython.nogil:
        usleep(1)
        while pp_load32_acquire(cython.address(inside)) != 0:
            usleep(50)


def _after_fork():
    # Threads that were inside, or had the lock, are not in the child.
    pp_store32_release(cython.address(inside), 0)
    pp_store32_release(cython.address(anchors_lock), 0)


atexit.register(_end)
os.register_at_fork(after_in_child=_after_fork)


# -- references --------------------------------------------------------------------------------------------------


def lease_get(lease):
    pp_add32(cython.address(lease.refs), 1)


def lease_put(lease):
    if pp_add32(cython.address(lease.refs), MINUS_ONE) == 1:
        _go_home(lease)


def _go_home(lease):
    done: uint32_t = 0
    if lease.kind == HOME_NONE:
        _free_lease(lease)
        return
    if not python_enter():
        return
    if lease.kind == HOME_RING and not cython.cast(Tiers, lease.home).track and not cython.cast(Tiers, lease.home).sync:
        done = cython.cast(Tiers, lease.home).ring_run(lease.ids, lease.nr_ids)
    if lease.kind != HOME_RING or done < lease.nr_ids:
        with cython.gil:
            _put_rest(lease, done)
    if lease.anchor != cython.NULL:
        _let_go(lease.anchor, lease.nr_ids)
    _free_lease(lease)
    python_leave()


def _put_rest(lease, done):
    # With the GIL. The caller may be a finalizer with an exception of its own on the way: it is put aside.
    kind: cython.pointer[PyObject] = cython.NULL
    value: cython.pointer[PyObject] = cython.NULL
    trace: cython.pointer[PyObject] = cython.NULL
    PyErr_Fetch(cython.address(kind), cython.address(value), cython.address(trace))
    _put_ids(lease, done)
    if lease.anchor == cython.NULL:
        Py_DECREF(cython.cast(object, lease.home))
    PyErr_Restore(kind, value, trace)
    return 0


def _put_ids(lease, done):
    # What is raised here goes to sys.unraisablehook: whoever called is a C function of another library.
    i: uint32_t
    if lease.kind == HOME_REFERENCE:
        for i in range(lease.nr_ids):
            _put_reference(cython.cast(Tiers, lease.home), lease.ids[i])
    elif lease.kind == HOME_RING and not cython.cast(Tiers, lease.home).track:
        # Never as the owner, who this thread may be: another may want to become it while a large put runs.
        cython.cast(Tiers, lease.home).put_ids(lease.ids + done, lease.nr_ids - done, -1, False)
        cython.cast(Tiers, lease.home).raise_pending()
    elif lease.kind != HOME_OBJECT:
        rest = PyMemoryView_FromMemory(
            cython.cast(cython.p_char, lease.ids + done), 4 * (lease.nr_ids - done), PyBUF_READ
        )
        cython.cast(object, lease.home).put_bulk(rest.cast("I"))
    return 0


def _put_reference(pool, id):
    pool.put_id(id, -1, False, False, cython.NULL)
    return 0


def _free_lease(lease):
    free(lease.block)
    free(lease)


# -- the one Python reference to a pool that all its leases share --------------------------------------------------


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
    found.leases += 1
    found.nr_pages += nr_pages
    pp_unlock(cython.address(anchors_lock))
    free(spare)
    return found


def _let_go(anchor, nr_pages):
    # Without the GIL a reference cannot be dropped: the main thread does it, as soon as it runs Python again. Until
    # then a pool lives a little longer; should the queue of such calls be full, until the next lease goes.
    global sweep_asked
    ask: cython.bint = False
    pp_lock(cython.address(anchors_lock))
    anchor.leases -= 1
    anchor.nr_pages -= nr_pages
    if anchor.leases == 0 and not sweep_asked:
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
        if one.leases == 0:
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
    """Pages of a pool that leases hold now, whoever made them. Context: any thread."""
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


class Lease:
    """Pages that belong to whoever refers to this, from Python or from C, and memory for arrays that describe them.

    Parameters
    ----------
    home : PagePool, object with ``put_bulk(ids)``, any object, or None
        Where the pages go in the end. Without `ids`, what holds them by itself: it is let go of in the end. None where
        there are no pages.
    ids : buffer of uint32, optional
        Pages that the caller owns, and the lease from now on; with `shared`, pages that stay the caller's.
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
            self._make(home, kind, view.buf, cython.cast(uint32_t, view.len // 4), size_bytes)
        finally:
            PyBuffer_Release(cython.address(view))

    def _make(self, home, kind, ids, n, size_bytes):
        room: cython.Py_ssize_t = (size_bytes + ALIGN_BYTES - 1) // ALIGN_BYTES * ALIGN_BYTES
        block: cython.p_void = cython.NULL
        lease: cython.pointer[pp_lease_t] = cython.cast(
            cython.pointer[pp_lease_t], calloc(1, cython.sizeof(pp_lease_t))
        )
        if lease == cython.NULL or posix_memalign(cython.address(block), ALIGN_BYTES, room + 4 * n + ALIGN_BYTES):
            free(lease)
            raise MemoryError(f"no memory for {size_bytes} bytes of arrays")
        lease.block = cython.cast(cython.p_char, block)
        lease.size_bytes = size_bytes
        lease.kind = kind
        lease.refs = 1
        lease.ids = cython.cast(cython.pointer[uint32_t], lease.block + room)
        lease.nr_ids = n
        if n:
            memcpy(lease.ids, ids, 4 * n)
        if kind != HOME_NONE:
            lease.home = cython.cast(cython.pointer[PyObject], home)
        try:
            if kind == HOME_REFERENCE:
                _take_references(lease)
            if kind == HOME_RING or kind == HOME_REFERENCE:
                lease.anchor = _anchor_of(home, n)
        except BaseException:
            _free_lease(lease)
            raise
        if kind == HOME_PUT_BULK or kind == HOME_OBJECT:
            Py_INCREF(home)
        self.lease = lease
        return 0

    def __dealloc__(self):
        if self.lease != cython.NULL:
            lease_put(self.lease)

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        PyBuffer_FillInfo(buffer, self, self.lease.block, self.lease.size_bytes, False, flags)

    @property
    def vaddr(self) -> int:
        """Where its memory begins."""
        return cython.cast(uintptr_t, self.lease.block)

    @property
    def nr_ids(self) -> int:
        """Pages it holds by id."""
        return self.lease.nr_ids

    @property
    def refcount(self) -> int:
        """References to it: this object, and those of Arrow arrays."""
        return pp_load32_acquire(cython.address(self.lease.refs))

    def __reduce__(self):
        raise TypeError("a Lease is memory of this process and cannot be pickled")


def _take_references(lease):
    pool: Tiers = cython.cast(Tiers, lease.home)
    one: uint64_t = cython.cast(uint64_t, 1) << PG_REF_SHIFT
    i: uint32_t = 0
    id: uint32_t
    word: uint64_t
    while i < lease.nr_ids:
        id = lease.ids[i]
        word = pp_load64(cython.address(pool.pages[id].word)) if id < pool.nr_pages else 0
        if pg_state(word) != PG_LENT or pg_slot(word) != pool.slot or pg_refs(word) == PG_REF_MAX:
            lease.nr_ids = i
            for i in range(lease.nr_ids):
                _put_reference(pool, lease.ids[i])
            raise ForeignPageError(f"page {id} is not lent by {pool!r}")
        if pp_cas64(cython.address(pool.pages[id].word), word, word + one):
            i += 1
    return 0

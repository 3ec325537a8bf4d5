# SPDX-License-Identifier: MIT
"""Many pages with one call: arrays of ids in, arrays of ids out.

A call costs one buffer and one owner check, whatever its length; the loops are in `tiers`. An ``array('I')`` is read
in place while the GIL keeps everybody else out of it and the cache can do it all: a buffer costs as much as 20 pages.
"""

import time
from array import array

import cython
from cython.cimports.cpython.array import array as c_array
from cython.cimports.cpython.array import clone, resize
from cython.cimports.cpython.buffer import (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import PG_HANDLE, PG_LENT, PG_SPENT, pg_slot, pg_state
from cython.cimports.pagepool._core.atomic import PP_GIL_DISABLED, pp_cas64, pp_load64, pp_thread_id, pp_unlikely
from cython.cimports.pagepool._core.lease import new_lease
from cython.cimports.pagepool._core.page import KIND_HOLDER, Page
from cython.cimports.pagepool._core.tiers import CACHE_SIZE, NO_MAP

from pagepool._core.carver import call_site
from pagepool.errors import ForeignPageError, NotMappedError, PagePoolError, PoolClosedError, WrongThreadError

_NO_IDS: c_array = array("I")  # what a new array of ids is cloned from


class Bulk(Control):
    """Base of `PagePool`; not for direct use."""

    def alloc_bulk(self, out):
        """Take many pages with one call.

        Parameters
        ----------
        out : writable buffer of uint32, or int
            Where the ids go, ``array('I')`` or ``(n,) uint32``; an int makes a new ``array('I')``.

        Returns
        -------
        int or array
            How many ids were written, from the first on; fewer than asked at the limit or out of memory. For an int,
            the array, as long as that count.

        Notes
        -----
        Context: the owner. From 2048 pages on, other threads run meanwhile (no GIL). Ids are put with `put_bulk`, or
        made handles by `page`; they are not given back by themselves while the pool lives.
        """
        view: Py_buffer
        done: uint32_t
        if isinstance(out, int):
            return self._new_ids(out)
        if type(out) is c_array and self._in_cache(out):
            done = self._take_cached(cython.cast(c_array, out))
            if done:
                return done
        _get_ids(out, cython.address(view), PyBUF_WRITABLE)
        try:
            done = self._take_many(
                cython.cast(cython.pointer[uint32_t], view.buf), cython.cast(uint32_t, view.len // 4)
            )
        finally:
            PyBuffer_Release(cython.address(view))
        return done

    def _new_ids(self, asked):
        n: cython.Py_ssize_t = PyNumber_AsSsize_t(asked, cython.NULL)  # what is out of range is cut to it
        done: int64_t
        if n < 0:
            raise ValueError(f"{asked} pages")
        if n > self.nr_pages:
            n = self.nr_pages
        made: c_array = clone(_NO_IDS, n, False)
        if n and not (self._in_cache(made) and self._take_cached(made)):
            done = self._take_many(made.data.as_uints, cython.cast(uint32_t, n))
            if done < n:
                resize(made, done)
        return made

    def _in_cache(self, out: c_array):
        # May the owner fill this array from the cache, with no Python and no other thread in between?
        return (
            not PP_GIL_DISABLED
            and self.alloc_thread == pp_thread_id()
            and out.ob_descr.itemsize == 4
            and 0 < len(out) <= self.cache_n
        )

    def _take_cached(self, out: c_array):
        # All of it or nothing: nothing where the cache holds entries that do not count.
        n: uint32_t = cython.cast(uint32_t, len(out))
        done: uint32_t = self.hit_run(out.data.as_uints, n)
        if pp_unlikely(done < n):
            self.cache_run(out.data.as_uints, done)
            return 0
        if self.cache_n < self.mark:
            self.note_high_water()
        return done

    def _take_many(self, at, n):
        done: uint32_t
        self.enter_owner()
        try:
            if not self.open:
                raise PoolClosedError(f"{self!r} is closed")
            if n >= NOGIL_PAGES:
                with cython.nogil:
                    done = self.alloc_ids(at, n)
            else:
                done = self.alloc_ids(at, n)
            if self.pending is not None or self.track:
                self._after_bulk(at, done)
        finally:
            with cython.critical_section(self):  # who claims the pool next sees the cache as it is now
                self.busy -= 1
        return done

    def _after_bulk(self, ids, n):
        i: uint32_t
        error = self.taken_pending()
        if error is not None:
            self.put_ids(ids, n, -1, True)  # Ctrl-C in the middle: nothing stays with a caller who cannot know of it
            self.taken_pending()
            raise error
        if self.track:
            site = (time.monotonic(), call_site())
            for i in range(n):
                self.alloc_sites[ids[i]] = site
        return 0

    def _note_puts(self, ids, n):
        i: uint32_t
        site = (time.monotonic(), call_site())
        for i in range(n):
            id = ids[i]
            if self.alloc_sites.pop(id, None) is not None:
                self.put_sites[id] = site
        return 0

    def put_bulk(self, ids, dma_sync_size: int64_t = -1):
        """Give many pages back with one call, never raising half way.

        Parameters
        ----------
        ids : buffer of uint32
            ``array('I')`` or ``(n,) uint32``.
        dma_sync_size : int
            Bytes of each page the device may have written; -1 is all of ``max_len``.

        Returns
        -------
        int
            How many went home. Ids that are foreign, out of range or not lent are passed over, and counted as
            ``rejected`` in `stats`.

        Notes
        -----
        Context: any thread. The owner's pages go to the cache, then to the ring; another thread's to the ring under one
        lock for all. From 2048 pages on, other threads run meanwhile (no GIL).
        """
        view: Py_buffer
        done: uint32_t = 0
        if type(ids) is c_array and self._fits_cache(ids):
            done = self.cache_run(cython.cast(c_array, ids).data.as_uints, cython.cast(uint32_t, len(ids)))
            if done == cython.cast(uint32_t, len(ids)):
                return done
        _get_ids(ids, cython.address(view), PyBUF_SIMPLE)
        try:
            done += self._put_many(
                cython.cast(cython.pointer[uint32_t], view.buf) + done,
                cython.cast(uint32_t, view.len // 4) - done,
                dma_sync_size,
            )
        finally:
            PyBuffer_Release(cython.address(view))
        return done

    def _fits_cache(self, ids: c_array):
        # As _in_cache: may the owner put what is in this array without Python or another thread in between?
        return (
            not PP_GIL_DISABLED
            and self.put_thread == pp_thread_id()
            and ids.ob_descr.itemsize == 4
            and len(ids) <= CACHE_SIZE - self.cache_n
        )

    def _put_many(self, at, n, dma_sync_size):
        done: uint32_t
        if self.track:
            self._note_puts(at, n)
        direct: cython.bint = self.auto_direct and self.owner == pp_thread_id()
        if direct:
            try:
                self.enter_owner()
            except WrongThreadError:  # without a GIL: somebody has claimed it just now
                direct = False
        if n >= NOGIL_PAGES:
            with cython.nogil:
                done = self.put_ids(at, n, dma_sync_size, direct)
        else:
            done = self.put_ids(at, n, dma_sync_size, direct)
        if direct:
            self.leave_owner()
        elif self.pending is not None:
            self.raise_pending()
        return done

    def page(self, id: int, offset: int = 0, length: int = -1) -> Page:
        """Make a handle for an id that the caller holds; the handle owns the page from now on.

        Parameters
        ----------
        id : int
            From `alloc_bulk`, or from a batch.
        offset, length : int
            Bytes of the page that the handle's buffer shows; all of it by default.

        Raises
        ------
        ForeignPageError
            The id is not lent by this pool.
        PagePoolError
            It has a handle already.
        """
        if not 0 <= id < self.nr_pages:
            raise ForeignPageError(f"page {id} is not in the arena of {self!r}")
        if length < 0:
            length = max(0, self.object_bytes - offset)
        if offset < 0 or offset + length > self.object_bytes:
            raise ValueError(f"offset {offset} and length {length} do not fit {self.object_bytes} bytes")
        number: uint32_t = id
        at: cython.pointer[uint64_t] = cython.address(self.pages[number].word)
        word: uint64_t = pp_load64(at)
        if pg_slot(word) != self.slot or pg_state(word) != PG_LENT or word & PG_SPENT:
            raise ForeignPageError(f"page {id} is not lent by {self!r}")
        if word & PG_HANDLE or not pp_cas64(at, word, word | PG_HANDLE):
            raise PagePoolError(f"page {id} has a handle already")
        return self.new_page(number, KIND_HOLDER, offset, length)

    def lease(self, ids, offset: int = 0, length: int = -1):
        """Take one more reference to each of some pages, whoever owns them.

        Parameters
        ----------
        ids : buffer of uint32, or int
            Pages that the caller holds, by id: of a batch, or from `alloc_bulk`. An int makes a lease of one dimension.
        offset, length : int
            Bytes of each page that the lease shows; all of it by default.

        Returns
        -------
        Lease
            The pages may be put meanwhile, in any way; each comes home when the lease, and what was made of it, is
            gone too.

        Raises
        ------
        ForeignPageError
            An id is not lent by this pool; no reference is kept.

        Notes
        -----
        Context: any thread.
        """
        view: Py_buffer
        number: uint32_t
        if length < 0:
            length = max(0, self.object_bytes - offset)
        if offset < 0 or offset + length > self.object_bytes:
            raise ValueError(f"offset {offset} and length {length} do not fit {self.object_bytes} bytes")
        if isinstance(ids, int):
            if not 0 <= ids < self.nr_pages:
                raise ForeignPageError(f"page {ids} is not in the arena of {self!r}")
            number = ids
            return new_lease(self, cython.address(number), 1, offset, length, True)
        _get_ids(ids, cython.address(view), PyBUF_SIMPLE)
        try:
            return new_lease(
                self,
                cython.cast(cython.pointer[uint32_t], view.buf),
                cython.cast(uint32_t, view.len // 4),
                offset,
                length,
                False,
            )
        finally:
            PyBuffer_Release(cython.address(view))

    def dma_addrs(self, ids, out) -> int:
        """Where the device finds many pages.

        Parameters
        ----------
        ids : buffer of uint32, (n,)
        out : writable buffer of uint64, (n,)

        Returns
        -------
        int
            How many were written; it ends at the first id that is not mapped.

        Raises
        ------
        NotMappedError
            The pool maps nothing at all.
        """
        view: Py_buffer
        target: Py_buffer
        i: uint32_t
        n: uint32_t
        _get_ids(ids, cython.address(view), PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(out, cython.address(target), PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_ND)
            try:
                if target.itemsize != 8 or target.len < view.len * 2:
                    raise ValueError("out must hold one uint64 for each id")
                n = cython.cast(uint32_t, view.len // 4)
                at: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], view.buf)
                to: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], target.buf)
                for i in range(n):
                    if at[i] >= self.nr_pages:
                        return i
                    try:
                        to[i] = self.dma_addr_of(at[i])
                    except NotMappedError:
                        if self.map_mode == NO_MAP:
                            raise
                        return i
                return n
            finally:
                PyBuffer_Release(cython.address(target))
        finally:
            PyBuffer_Release(cython.address(view))


def _get_ids(ids, view, flags):
    # A contiguous buffer of 4-byte items. The item size is asked for, not the format: a string to parse is dear.
    PyObject_GetBuffer(ids, view, flags | PyBUF_ND)
    if view.itemsize != 4 or view.len < 0:
        size = view.itemsize
        PyBuffer_Release(view)
        raise TypeError(f"ids must be a contiguous buffer of uint32, not of {size}-byte items")
    return 0

# SPDX-License-Identifier: MIT
"""`PagePool`: the kernel's ``struct page_pool`` for user space.

The public face of the three tiers (`tiers`) and of handles and fragments (`carver`): parameters, bulk doors, life and
death, figures. What a call costs and who may call it stands in its docstring.

Invariant, proved by `PagePool.check` at any moment: hold = cached + ringed + lent + released.
"""

import time
import warnings
from array import array

import cython
from cython.cimports.cpython.buffer import (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cython.cimports.cpython.object import PyObject
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import (
    NO_PAGE,
    PAGES_PER_SLAB,
    PG_CACHED,
    PG_FRESH,
    PG_HANDLE,
    PG_LENT,
    PG_MAPPED,
    PG_RINGED,
    Arena,
    pg_slot,
    pg_state,
    pg_word,
)
from cython.cimports.pagepool._core.atomic import (
    PP_GIL_DISABLED,
    pp_cas64,
    pp_is_finalizing,
    pp_likely,
    pp_load32,
    pp_load64,
    pp_lock,
    pp_store64,
    pp_thread_id,
    pp_unlock,
)
from cython.cimports.pagepool._core.carver import FRAG_ALIGN
from cython.cimports.pagepool._core.dma_map import MAP_PAGE, NOT_MAPPED, DmaMap
from cython.cimports.pagepool._core.page import KIND_HOLDER, Page
from cython.cimports.pagepool._core.tiers import (
    LEFT_CLOSED,
    LEFT_DETACHED,
    LEFT_MAP,
    LEFT_NID,
    LEFT_REFCNT,
    LEFT_RING_FULL,
    LEFT_SYNC,
    LEFT_WAIVE,
    NO_MAP,
)

from pagepool._core import registry
from pagepool._core.carver import call_site
from pagepool._core.params import PPFlag, make_params
from pagepool._core.ptr_ring import PtrRing
from pagepool._core.stats import Holder, PoolStats
from pagepool.errors import (
    ForeignPageError,
    NotMappedError,
    PageLeakWarning,
    PagePoolError,
    PoolBusyError,
    PoolClosedError,
)

#: From this many pages on, a bulk call lets other Python threads run meanwhile; below, taking the GIL back costs more.
NOGIL_PAGES = 128


class PagePool(Carver):
    """A pool of recycled pages for one consumer.

    Parameters
    ----------
    params : PagePoolParams, optional
        All fields at once.
    **fields
        Or one by one: ``flags order pool_size nid dev dma_dir max_len offset napi`` as in the kernel, and ours:
        ``limit zero memory track strict``. See `PagePoolParams` for units and rules.

    Raises
    ------
    ValueError
        A field that the kernel answers with ``-EINVAL``; the text names it.

    Notes
    -----
    Owner: the first thread that allocates. It alone may allocate, carve and bulk-allocate; every thread may put.
    Cost: an allocation from the cache is one load, one compare and two stores plus the call; a put the same.
    Free threading: the owner's calls take the object's own (uncontended) lock where there is no GIL.
    Source: https://docs.kernel.org/networking/page_pool.html
    """

    def __cinit__(self, *args, **fields):
        self.ring = PtrRing(1)  # a subclass that forgets super().__init__() has a closed pool, not a crash
        self.frag_page = NO_PAGE

    def __init__(self, params=None, /, **fields):
        if self.arena is not None:
            raise RuntimeError("a PagePool is made once")
        checked = make_params(params, fields)
        memory = _allocator(checked.memory)
        arena: Arena = memory.arena
        self.params = checked
        self.memory = memory
        self.arena = arena
        self.pages = arena.pages
        self.nr_pages = arena.nr_pages
        self.order = checked.order
        self.object_bytes = 4096 << self.order
        self.nid = checked.nid
        self.limit = checked.limit
        self.zero = checked.zero
        self.max_len = checked.max_len
        self.dma_offset = checked.offset
        self.dma_dir_obj = checked.dma_dir
        self.strict = checked.strict
        self.auto_direct = True
        self.map_mode = NO_MAP
        self.track = checked.track
        if self.track:
            self.alloc_sites = {}
            self.put_sites = {}
        self.ring = PtrRing(checked.pool_size)
        if PPFlag.DMA_MAP in checked.flags:
            self.dev = checked.dev
            self.sync = PPFlag.DMA_SYNC_DEV in checked.flags and bool(checked.dev.needs_sync)
            key = (id(checked.dev), int(checked.dma_dir))
            found: DmaMap = arena.dma_maps.get(key)
            if found is None:
                found = arena.dma_maps.setdefault(
                    key, DmaMap(arena.base_vaddr, arena.nr_slabs, checked.dev, checked.dma_dir)
                )
            self.dma_map = found
            self.map_mode = found.granularity
            self.slab_dma = found.slab_dma
        self.slot = arena.new_slot()
        mapped: uint64_t = PG_MAPPED if self.map_mode == MAP_PAGE else 0
        self.word_cached = pg_word(PG_CACHED, self.slot, mapped)
        self.word_ringed = pg_word(PG_RINGED, self.slot, mapped)
        self.word_lent = pg_word(PG_LENT, self.slot, mapped)
        self.word_lent_handle = pg_word(PG_LENT, self.slot, mapped | PG_HANDLE)
        self.users = 1
        self._creator = True
        self.open = True
        self.id = registry.add(self)

    # -- one page ------------------------------------------------------------------------------------------------

    def dev_alloc_pages(self):
        """Take a page, or ``None`` where there is none: at the limit, or out of memory.

        Returns
        -------
        Page or None
            Owned by the caller until it is put or its last reference goes.

        Raises
        ------
        PoolClosedError
            After `close`.
        WrongThreadError
            The caller is not the owner.

        Notes
        -----
        Context: the owner. About the cost of a method call while the cache or the ring has pages.
        """
        page: Page = self.take_cached()
        if pp_likely(page is not None):
            return page
        try:
            return self.take_page()
        except OSError:
            return None

    def alloc_pages(self):
        """Take a page.

        Returns
        -------
        Page
            Owned by the caller until it is put or its last reference goes.

        Raises
        ------
        MemoryError
            At the limit (the text names who holds the pages) or out of memory.
        OSError
            The device refused to map.
        PoolClosedError
            After `close`.
        WrongThreadError
            The caller is not the owner.
        """
        page: Page = self.take_cached()
        if pp_likely(page is not None):
            return page
        page = self.take_page()
        if page is None:
            raise MemoryError(self._why_none())
        return page

    def take_cached(self):
        # The top of the cache, or None: no Python runs here. All else is `take_page`'s.
        id: uint32_t
        if pp_likely(self.alloc_thread == pp_thread_id()):
            with cython.critical_section(self):
                if pp_likely(self.cache_n != 0 and (not PP_GIL_DISABLED or self.alloc_thread == pp_thread_id())):
                    id = self.cache[self.cache_n - 1]
                    if pp_likely(pp_load64(cython.address(self.pages[id].word)) == self.word_cached):
                        self.cache_n -= 1
                        self.alloc_fast += 1
                        pp_store64(cython.address(self.pages[id].word), self.word_lent_handle)
                        if self.cache_n < self.mark:
                            self.note_high_water()
                        return self.new_page(id, KIND_HOLDER, 0, self.object_bytes)
        return None

    def put_page(self, page: Page, dma_sync_size: int64_t = -1, allow_direct: cython.bint = False):
        """Give a page back: drop the holder's reference; the last one recycles it.

        Parameters
        ----------
        page : Page
            Dead after the call. Views of it stay good, and the last of them takes the page home.
        dma_sync_size : int
            Bytes the device may have written; -1 is all of ``max_len``.
        allow_direct : bool
            The caller promises to be the owner; the promise is checked.

        Raises
        ------
        DoublePutError, ForeignPageError, WrongThreadError
            And nothing has changed.

        Notes
        -----
        Context: any thread. The owner's page goes to the cache without a lock, another's to the ring under one.
        """
        if page is None:
            raise TypeError("put_page wants a Page, not None")
        self.handle_put(page, dma_sync_size, allow_direct)

    def put_full_page(self, page: Page, allow_direct: cython.bint = False):
        """`put_page` with all of ``max_len`` synced for the device."""
        self.put_page(page, -1, allow_direct)

    def recycle_direct(self, page: Page):
        """`put_full_page` straight into the cache.

        Raises
        ------
        WrongThreadError
            The caller is not the owner; the page is still lent.
        """
        self.put_page(page, -1, True)

    def release_page(self, page: Page):
        """Take a page out of the pool for good: unmap it, account for it; the handle keeps the memory.

        The handle stays readable; when it is put or dies, the memory goes to the page allocator.

        Raises
        ------
        PagePoolError
            Fragments of the page are out.

        Notes
        -----
        Context: any thread.
        """
        if page is None or page.home != cython.cast(cython.pointer[PyObject], self):
            raise ForeignPageError(f"{page!r} does not belong to {self!r}")
        page._must_live()
        if page.kind != KIND_HOLDER or not self.detach(page):
            raise PagePoolError(f"page {page.id} has other references; only a whole page leaves the pool")
        if self.alloc_sites is not None:
            self.alloc_sites.pop(page.id, None)
        self.leave(page.id, LEFT_DETACHED)

    def get_page(self, page: Page) -> Page:
        """Take a foreign reference: somebody outside the pool's bookkeeping keeps the memory.

        Returns
        -------
        Page
            A handle of its own on the same memory. As long as it lives, a put of the page does not recycle it: the
            page is unmapped and leaves the pool, and the memory follows when this handle goes.
        """
        if page is None or page.home != cython.cast(cython.pointer[PyObject], self):
            raise ForeignPageError(f"{page!r} does not belong to {self!r}")
        return self.foreign(page)

    # -- fragments -----------------------------------------------------------------------------------------------

    def alloc_frag(self, size: int):
        """Carve `size` bytes from the pool's current page.

        Parameters
        ----------
        size : int
            Bytes, rounded up to 64; at most an object.

        Returns
        -------
        Page or None
            A handle on the fragment; put it like a page. The page goes home with its last fragment.

        Raises
        ------
        ValueError
            Larger than an object, or not positive.

        Notes
        -----
        Context: the owner. No atomic.
        """
        if size <= 0 or size > self.object_bytes:
            raise ValueError(f"size {size} is out of range: 1 to {self.object_bytes} bytes")
        return self.carve((size + FRAG_ALIGN - 1) // FRAG_ALIGN * FRAG_ALIGN, False)

    def alloc(self, size: int):
        """Take a whole page where `size` is above half of one, else a fragment.

        Where what is left of the page could not hold another such fragment, this one gets the rest: look at its
        length.

        Returns
        -------
        Page or None
        """
        wanted: uint32_t
        if size <= 0 or size > self.object_bytes:
            raise ValueError(f"size {size} is out of range: 1 to {self.object_bytes} bytes")
        wanted = (size + FRAG_ALIGN - 1) // FRAG_ALIGN * FRAG_ALIGN
        if 2 * wanted > self.object_bytes:
            return self.dev_alloc_pages()
        return self.carve(wanted, True)

    # -- many pages ----------------------------------------------------------------------------------------------

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
        Context: the owner. From 128 pages on, other threads run meanwhile (no GIL). Ids are put with `put_bulk`, or
        made handles by `page`; they are not given back by themselves while the pool lives.
        """
        view: Py_buffer
        n: uint32_t
        done: uint32_t
        if isinstance(out, int):
            if out < 0:
                raise ValueError(f"{out} pages")
            made = array("I", bytes(4 * out))
            return made[: self.alloc_bulk(made)] if out else made
        _get_ids(out, cython.address(view), PyBUF_WRITABLE)
        try:
            n = cython.cast(uint32_t, view.len // 4)
            self.enter_owner()
            try:
                if not self.open:
                    raise PoolClosedError(f"{self!r} is closed")
                if n >= NOGIL_PAGES:
                    with cython.nogil:
                        done = self.alloc_ids(cython.cast(cython.pointer[uint32_t], view.buf), n)
                else:
                    done = self.alloc_ids(cython.cast(cython.pointer[uint32_t], view.buf), n)
                if self.pending is not None or self.track:
                    self._after_bulk(cython.cast(cython.pointer[uint32_t], view.buf), done)
            finally:
                self.busy -= 1
        finally:
            PyBuffer_Release(cython.address(view))
        return done

    def _after_bulk(self, ids, n):
        i: uint32_t
        error = self.pending
        if error is not None and not isinstance(error, (OSError, MemoryError, PoolClosedError)):
            self.put_ids(ids, n, -1, True)  # Ctrl-C in the middle: nothing stays with a caller who cannot know of it
            self.pending = None
            raise error
        self.pending = None
        if self.track:
            site = (time.monotonic(), call_site())
            for i in range(n):
                self.alloc_sites[ids[i]] = site
        return 0

    def _note_puts(self, ids, n):
        i: uint32_t
        site = (time.monotonic(), call_site())
        for i in range(n):
            if self.alloc_sites.pop(ids[i], None) is not None:
                self.put_sites[ids[i]] = site
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
        lock for all. From 128 pages on, other threads run meanwhile (no GIL).
        """
        view: Py_buffer
        n: uint32_t
        done: uint32_t
        i: uint32_t
        direct: cython.bint
        _get_ids(ids, cython.address(view), PyBUF_SIMPLE)
        try:
            n = cython.cast(uint32_t, view.len // 4)
            at: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], view.buf)
            if self.track:
                self._note_puts(at, n)
            direct = self.auto_direct and self.owner == pp_thread_id()
            if direct:
                self.enter_owner()
            if n >= NOGIL_PAGES:
                with cython.nogil:
                    done = self.put_ids(at, n, dma_sync_size, direct)
            else:
                done = self.put_ids(at, n, dma_sync_size, direct)
            if direct:
                self.leave_owner()
            elif self.pending is not None:
                self.raise_pending()
        finally:
            PyBuffer_Release(cython.address(view))
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
        if pg_slot(word) != self.slot or pg_state(word) != PG_LENT:
            raise ForeignPageError(f"page {id} is not lent by {self!r}")
        if word & PG_HANDLE or not pp_cas64(at, word, word | PG_HANDLE):
            raise PagePoolError(f"page {id} has a handle already")
        return self.new_page(number, KIND_HOLDER, offset, length)

    # -- DMA -----------------------------------------------------------------------------------------------------

    def dma_addr_of(self, id):
        if self.map_mode == NO_MAP:
            raise NotMappedError(f"{self!r} maps nothing: make it with flags=PPFlag.DMA_MAP and a dev")
        if self.map_mode == MAP_PAGE:
            word: uint64_t = pp_load64(cython.address(self.pages[id].word))
            if not word & PG_MAPPED or pg_slot(word) != self.slot:
                raise NotMappedError(f"page {id} is not mapped; it is not in {self!r}, or left it")
            return self.pages[id].dma_addr
        if self.slab_dma[id >> 9] == NOT_MAPPED:
            raise NotMappedError(f"page {id} is not mapped; no page of its slab was ever in {self!r}")
        return self.slab_dma[id >> 9] + (cython.cast(uint64_t, id & 511) << 12)

    def dma_addr(self, id: int) -> int:
        """Where the device finds the first byte of page `id`."""
        if not 0 <= id < self.nr_pages:
            raise ForeignPageError(f"page {id} is not in the arena of {self!r}")
        return self.dma_addr_of(id)

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

    def dma_sync_for_cpu(self, page, offset: int, size_bytes: int) -> None:
        """Make what the device wrote visible to the CPU: the driver's duty before it looks.

        Parameters
        ----------
        page : Page or int
        offset : int
            Bytes from the pool's own offset.
        size_bytes : int
        """
        number = page
        if isinstance(page, Page):
            handle: Page = page
            if handle.home != cython.cast(cython.pointer[PyObject], self):
                raise ForeignPageError(f"{page!r} does not belong to {self!r}")
            handle._must_live()
            number = handle.id
        if offset < 0 or size_bytes < 0 or offset + self.dma_offset + size_bytes > self.object_bytes:
            raise ValueError(f"offset {offset} and size {size_bytes} do not fit {self.object_bytes} bytes")
        at = self.dma_addr(number) + self.dma_offset + offset
        if self.dev.needs_sync:
            self.dev.sync_for_cpu(at, size_bytes, self.dma_dir_obj)

    @property
    def dma_dir(self):
        """The `DmaDir` of its mappings."""
        return self.dma_dir_obj

    # -- owner, node, hooks --------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Make the calling thread the owner.

        Raises
        ------
        PoolBusyError
            The owner is inside the pool right now.

        Notes
        -----
        Context: the old owner must be done with the pool, as a NAPI that was moved to another CPU is.
        """
        me = pp_thread_id()
        with cython.critical_section(self):
            if self.busy and self.owner != me:
                raise PoolBusyError(f"{self!r} is being used by its owner")
            self.owner = me
            self.set_fast_threads()

    @property
    def is_owner(self) -> bool:
        """Whether the calling thread owns the pool."""
        return self.owner == pp_thread_id()

    @property
    def direct_recycling(self) -> bool:
        """Whether the owner's plain puts go to the cache (the default), or to the ring as from any other thread.

        The kernel's ``page_pool_enable_direct_recycling`` and ``page_pool_disable_direct_recycling``.
        """
        return self.auto_direct

    @direct_recycling.setter
    def direct_recycling(self, value: bool):
        with cython.critical_section(self):
            self.auto_direct = bool(value)
            self.set_fast_threads()

    def update_nid(self, nid: int) -> None:
        """Move the pool to another NUMA node: cached pages go back to the page allocator, the ring follows at refill.

        Notes
        -----
        Context: the owner.
        """
        if nid < -1 or nid >= 64:
            raise ValueError(f"node {nid} is no node")
        self.enter_owner()
        try:
            self.nid = nid
            while self.cache_n:
                self.cache_n -= 1
                if pp_load64(cython.address(self.pages[self.cache[self.cache_n]].word)) == self.word_cached:
                    self.leave(self.cache[self.cache_n], LEFT_NID)
            if self.observer is not None:
                self.observer("update_nid", 0, nid)
        finally:
            self.leave_owner()

    def nid_changed(self, nid: int) -> None:
        """`update_nid`, but only where it is a change."""
        if nid != self.nid:
            self.update_nid(nid)

    def set_observer(self, observer) -> None:
        """Call ``observer(event, id, count)`` where the kernel has tracepoints, ``None`` ends it.

        Events: ``"hold"`` and ``"release"`` (id of the page, counter after it), ``"update_nid"`` (0, node),
        ``"pool_release"`` (pool id, inflight). They come on real allocations and frees only, never on recycle.
        """
        self.observer = observer

    def on_watermark(self, high: int, low: int, callback) -> None:
        """Call ``callback(pool, above)`` when the pages held reach `high`, and again when they are down to `low`.

        Parameters
        ----------
        high, low : int
            Objects, ``low < high``. They are looked at on the slow path only.
        callback : callable
            ``above`` is true on the way up. Runs on the owner's thread.
        """
        if not 0 <= low < high:
            raise ValueError(f"watermarks {low} and {high}: low must be below high")
        self.watermark = [high, low, callback, False]

    def crossed(self):
        high, low, callback, above = self.watermark
        held = self.hold_cnt - pp_load32(cython.address(self.release_cnt))
        if not above and held >= high:
            self.watermark[3] = True
            callback(self, True)
        elif above and held <= low:
            self.watermark[3] = False
            callback(self, False)
        return 0

    # -- life and death ------------------------------------------------------------------------------------------

    def get_user(self):
        """Take a user reference, as an XDP registration does; the pool is destroyed when the last one goes."""
        if not self.open:
            raise PoolClosedError(f"{self!r} is closed")
        self.users += 1
        return self

    def put_user(self) -> None:
        """Give a user reference back."""
        if self.users <= 0:
            raise PagePoolError(f"{self!r} has no users left")
        if self.users == 1:
            self.destroy()
        self.users -= 1

    def close(self) -> None:
        """Give up the creator's reference; the last user destroys the pool.

        Destroying stops allocation, gives idle pages back to the page allocator and unmaps pages that are still out
        exactly once. Pages that are still lent stay good and go straight back to the page allocator when they are put.
        Safe to call twice.

        Raises
        ------
        PoolBusyError
            The owner is inside the pool right now, on another thread; nothing has changed.

        Notes
        -----
        Context: any thread.
        """
        if self._creator and self.users > 0:
            if self.users == 1:
                self.destroy()
            self._creator = False
            self.users -= 1

    def destroy(self):
        refused = None
        number: uint32_t
        with cython.critical_section(self):
            if self.busy and self.owner != pp_thread_id():
                raise PoolBusyError(f"{self!r} is being used by its owner; stop that first")
            if not self.open:
                return 0
            self.open = False
            self.set_fast_threads()
            pp_lock(cython.address(self.ring.lock))
            self.ring.closed = 1  # late producers are out from here on
            pp_unlock(cython.address(self.ring.lock))
            # Whatever a device raises, Ctrl-C too, the rest is still given back; the caller hears of it at the end.
            if self.frag_page != NO_PAGE:
                try:
                    self.drain_frag()
                except BaseException as error:
                    refused = error
            while self.cache_n:
                self.cache_n -= 1
                number = self.cache[self.cache_n]
                if pp_load64(cython.address(self.pages[number].word)) == self.word_cached:
                    try:
                        self.leave(number, LEFT_CLOSED)
                    except BaseException as error:
                        refused = error
            while self.ring.consume_bulk(cython.address(number), 1):
                if pp_load64(cython.address(self.pages[number].word)) == self.word_ringed:
                    try:
                        self.leave(number, LEFT_CLOSED)
                    except BaseException as error:
                        refused = error
            if self.map_mode == MAP_PAGE:
                for lent in self.lent_ids():
                    try:
                        self.unmap_page(lent)
                    except BaseException as error:
                        refused = error
        if self.inflight > 0:
            self.detach_time = time.monotonic()
        registry.notify("change" if self.inflight > 0 else "del", self.id)
        if self.observer is not None:
            self.observer("pool_release", self.id, self.inflight)
        if refused is not None:
            raise refused
        return 0

    def drain(self, timeout: float = 0.0) -> list:
        """Wait until nothing is lent.

        Parameters
        ----------
        timeout : float
            Seconds.

        Returns
        -------
        list of Holder
            Who still holds pages, most first; empty when all are home.

        Notes
        -----
        Context: any thread; sleeps without the GIL between looks.
        """
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while self.lent and time.monotonic() < deadline:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 2, 0.02)
        return self.holders()

    def holders(self) -> list:
        """Who holds pages now: one `Holder` for each place they were allocated at, most first."""
        groups = {}
        now = time.monotonic()
        for number in self.lent_ids():
            since, where = 0.0, "somewhere; PagePool(track=True) remembers where"
            if self.alloc_sites is not None and number in self.alloc_sites:
                since, where = self.alloc_sites[number]
                where = "at " + where
            groups.setdefault(where, []).append((number, now - since if since else 0.0))
        found = [
            Holder(where, len(held), max(age for _, age in held), tuple(number for number, _ in held))
            for where, held in groups.items()
        ]
        return sorted(found, key=lambda holder: -holder.count)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
        if self.lent and exc[0] is None:
            warnings.warn(
                f"{self!r} was left with pages out: " + "; ".join(map(str, self.holders())),
                PageLeakWarning,
                stacklevel=2,
            )

    def __del__(self):
        # No handle can be left: each keeps the pool alive. Ids that were never put go home here.
        if self.arena is None or self.slot == 0:
            return
        refused = None
        try:
            self.destroy()
        except BaseException as error:
            refused = error
        for number in self.lent_ids():
            at: cython.pointer[uint64_t] = cython.address(self.pages[cython.cast(uint32_t, number)].word)
            pp_store64(at, (pp_load64(at) & ~cython.cast(uint64_t, 0xF)) | PG_FRESH)
            try:
                self.leave(number, LEFT_CLOSED)
            except BaseException as error:
                refused = error
        self.arena.drop_slot(self.slot)
        self.slot = 0
        if refused is not None and not pp_is_finalizing():
            raise refused

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def inflight(self) -> int:
        """The kernel's word: objects not yet back at the page allocator, idle ones included."""
        return cython.cast(cython.int, self.hold_cnt - pp_load32(cython.address(self.release_cnt)))

    @property
    def lent(self) -> int:
        """Objects that somebody outside the pool holds."""
        # A page being carved of which no fragment is out is at home, though in no tier.
        return cython.cast(cython.int, self.lent_now() - (1 if self.frag_idle() else 0))

    @property
    def closed(self) -> bool:
        """Whether it was destroyed; pages may still be out."""
        return not self.open

    @property
    def nid_preferred(self) -> int:
        """NUMA node it takes pages from; -1 for the node of the thread that refills."""
        return self.nid

    def stats(self):
        """Return the figures of this moment as a `PoolStats`.

        Notes
        -----
        Context: any thread; figures of different threads may be a page apart.
        """
        dma_map: DmaMap = self.dma_map
        return PoolStats(
            fast=self.alloc_fast,
            slow=self.alloc_slow,
            slow_high_order=self.alloc_slow_high_order,
            empty=self.alloc_empty,
            refill=self.alloc_refill,
            waive=self.alloc_waive,
            cached=self.recycle_cached,
            cache_full=self.recycle_cache_full,
            ring=self.ring.nr_produced,
            ring_full=self.ring.nr_full,
            released_refcnt=self.recycle_released_refcnt,
            allocated=self.alloc_fast + self.alloc_refill + self.alloc_slow + self.alloc_slow_high_order,
            fresh=self.hold_cnt,
            recycled=self.recycle_cached + self.ring.nr_produced,
            in_cache=self.cache_n,
            in_ring=self.ring.count(),
            lent=self.lent,
            high_water=self.high_water,
            inflight=self.inflight,
            hold_cnt=self.hold_cnt,
            release_cnt=self.release_cnt,
            left_refcnt=self.left[LEFT_REFCNT],
            left_ring_full=self.left[LEFT_RING_FULL],
            left_waive=self.left[LEFT_WAIVE],
            left_nid=self.left[LEFT_NID],
            left_closed=self.left[LEFT_CLOSED],
            left_detached=self.left[LEFT_DETACHED],
            left_sync=self.left[LEFT_SYNC],
            map_failed=self.left[LEFT_MAP],
            limit_hits=self.limit_hits,
            rejected=self.rejected,
            maps=self.page_maps + (dma_map.maps if dma_map is not None else 0),
            unmaps=self.page_unmaps + (dma_map.unmaps if dma_map is not None else 0),
            syncs=self.syncs,
            object_bytes=self.object_bytes,
        )

    def lent_ids(self):
        # A walk over the page records of slabs that have memory: for reports and for the end, not for the fast path.
        found = []
        slab: uint32_t
        number: uint32_t
        word: uint64_t
        idle: uint32_t = self.frag_page if self.frag_idle() else NO_PAGE
        if self.arena is None:
            return found
        for slab in range(self.arena.nr_slabs):
            if not self.arena._slab_on[slab]:
                continue
            for number in range(slab * PAGES_PER_SLAB, (slab + 1) * PAGES_PER_SLAB):
                word = pp_load64(cython.address(self.pages[number].word))
                if pg_slot(word) == self.slot and pg_state(word) == PG_LENT and number != idle:
                    found.append(number)
        return found

    def count_words(self):
        counts = {PG_CACHED: 0, PG_RINGED: 0, PG_LENT: 0, PG_FRESH: 0}
        slab: uint32_t
        number: uint32_t
        word: uint64_t
        if self.arena is None:
            return counts
        for slab in range(self.arena.nr_slabs):
            if self.arena._slab_on[slab]:
                for number in range(slab * PAGES_PER_SLAB, (slab + 1) * PAGES_PER_SLAB):
                    word = pp_load64(cython.address(self.pages[number].word))
                    if pg_slot(word) == self.slot:
                        counts[pg_state(word)] += 1
        return counts

    def check(self) -> None:
        """Prove conservation: hold = cached + ringed + lent + released, counted from the pages' own records.

        Raises
        ------
        PagePoolError
            It does not hold; the text has the figures.

        Notes
        -----
        Context: any thread, exact while nobody is inside the pool. Cost: a walk over all pages of the arena.
        """
        for attempt in range(5):
            pp_lock(cython.address(self.ring.lock))
            counts = self.count_words()
            held = self.inflight
            cached = self.cache_n
            ringed = self.ring.count()
            pp_unlock(cython.address(self.ring.lock))
            in_transit = counts[PG_FRESH]
            if (
                counts[PG_CACHED] <= cached
                and counts[PG_RINGED] <= ringed
                and counts[PG_CACHED] + counts[PG_RINGED] + counts[PG_LENT] + in_transit == held
            ):
                return
            time.sleep(0.001 * attempt)
        raise PagePoolError(
            f"{self!r} does not add up: hold {self.hold_cnt} - released {self.release_cnt} = {held}, but the pages say "
            f"cached {counts[PG_CACHED]} (cache holds {cached}), ringed {counts[PG_RINGED]} (ring holds {ringed}), "
            f"lent {counts[PG_LENT]}, in transit {in_transit}"
        )

    def _why_none(self):
        if self.limit and self.inflight >= cython.cast(cython.int, self.limit):
            who = "; ".join(map(str, self.holders()[:3]))
            return f"{self!r} is at its limit of {self.limit} pages: {who}"
        return f"{self!r}: the page allocator has no block of order {self.order}"

    def __reduce__(self):
        raise TypeError("a PagePool is memory of this process and cannot be pickled")

    def __repr__(self) -> str:
        state = "" if self.open else ", closed"
        return f"<PagePool {self.id}: {self.lent} lent, {self.inflight} held of {self.object_bytes} bytes{state}>"


def _get_ids(ids, view, flags):
    # A contiguous buffer of 4-byte items. The item size is asked for, not the format: a string to parse is dear.
    PyObject_GetBuffer(ids, view, flags | PyBUF_ND)
    if view.itemsize != 4 or view.len < 0:
        size = view.itemsize
        PyBuffer_Release(view)
        raise TypeError(f"ids must be a contiguous buffer of uint32, not of {size}-byte items")
    return 0


def _allocator(memory):
    # The pool knows what an allocator offers (`arena`), the memory room knows how to make one. A name or None goes
    # through the factory which that room has registered: imports point down only.
    if memory is not None and hasattr(memory, "arena"):
        return memory
    if allocator_factory is None:
        raise RuntimeError("no memory room: import pagepool, not pagepool._core")
    return allocator_factory(memory)


allocator_factory = None


def set_allocator_factory(factory) -> None:
    """Say how a pool's ``memory=None`` or ``memory="thp"`` becomes a page allocator; the memory room calls this once."""
    global allocator_factory
    allocator_factory = factory

# SPDX-License-Identifier: MIT
"""`PagePool`: the kernel's ``struct page_pool`` for user space.

The public face of the rooms below it: creation, the doors for one page, fragments, and DMA. Bulk doors are in `bulk`,
ownership and the end in `control`, figures in `ledger`, handles and fragments in `carver`, the tiers in `tiers`.

Invariant, proved by ``check()`` at any moment: hold = cached + ringed + lent + released.
"""

import cython
from cython.cimports.cpython.object import PyObject
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import (
    NO_PAGE,
    PG_CACHED,
    PG_HANDLE,
    PG_LENT,
    PG_MAPPED,
    PG_RINGED,
    Arena,
    pg_slot,
    pg_word,
)
from cython.cimports.pagepool._core.atomic import PP_GIL_DISABLED, pp_likely, pp_load64, pp_store64, pp_thread_id
from cython.cimports.pagepool._core.carver import FRAG_ALIGN
from cython.cimports.pagepool._core.dma_map import MAP_PAGE, NOT_MAPPED, DmaMap
from cython.cimports.pagepool._core.page import KIND_HOLDER, Page
from cython.cimports.pagepool._core.tiers import LEFT_DETACHED, NO_MAP

from pagepool._core import registry
from pagepool._core.params import PPFlag, make_params
from pagepool._core.ptr_ring import PtrRing
from pagepool._core.tensor import host_device
from pagepool.errors import (
    ForeignPageError,
    NotMappedError,
    PagePoolError,
)


class PagePool(Bulk):
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
        self.ring.is_pools = True
        if PPFlag.DMA_MAP in checked.flags:
            self.dev = checked.dev
            self.sync = PPFlag.DMA_SYNC_DEV in checked.flags and bool(checked.dev.needs_sync)
            self.is_watched = getattr(checked.dev, "cpu_access", None) is not None
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

    # -- DMA -----------------------------------------------------------------------------------------------------

    def dma_addr_of(self, id):
        if self.map_mode == NO_MAP:
            raise NotMappedError(f"{self!r} maps nothing: make it with flags=PPFlag.DMA_MAP and a dev")
        if self.map_mode == MAP_PAGE:
            word: uint64_t = pp_load64(cython.address(self.pages[id].word))
            if not word & PG_MAPPED or pg_slot(word) != self.slot:
                raise NotMappedError(f"page {id} is not mapped; it is not in {self!r}, or left it")
            return self.pages[id].dma_addr
        start: uint64_t = pp_load64(self.slab_dma + (id >> 9))
        if start == NOT_MAPPED:
            raise NotMappedError(f"page {id} is not mapped; no page of its slab was ever in {self!r}")
        return start + (cython.cast(uint64_t, id & 511) << 12)

    def dma_addr(self, id: int) -> int:
        """Where the device finds the first byte of page `id`."""
        if not 0 <= id < self.nr_pages:
            raise ForeignPageError(f"page {id} is not in the arena of {self!r}")
        return self.dma_addr_of(id)

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

    def cpu_looks(self, page, index, size_bytes):
        # A `Page` is about to show its bytes. What is not mapped is the CPU's alone.
        page._must_live()
        try:
            at = self.dma_addr_of(page.id) + page.offset + index
        except NotMappedError:
            return 0
        self.dev.cpu_access(at, size_bytes)
        return 0

    def dlpack_device(self):
        return host_device(self.dev)

    @property
    def dma_dir(self):
        """The `DmaDir` of its mappings."""
        return self.dma_dir_obj

    def __reduce__(self):
        raise TypeError("a PagePool is memory of this process and cannot be pickled")


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
    """Say how ``memory=None`` or ``memory="thp"`` becomes a page allocator; the memory room calls this once."""
    global allocator_factory
    allocator_factory = factory

# SPDX-License-Identifier: MIT
"""Page records and the page allocator: a buddy allocator over the slabs of one arena.

An arena is one reservation of contiguous virtual addresses; this room knows only where it starts and which of its
2 MiB slabs have memory behind them. The memory room maps them. A page's *id* is its number in the arena, so that
``vaddr = base_vaddr + (id << 12)`` whatever the order of the object it heads.

Invariant: each page of a slab that was added is in exactly one place: a free block of this allocator, or an object
that was handed out; and two free buddies never lie side by side unmerged.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.pagepool._core.atomic import (
    pp_cas64,
    pp_current_node,
    pp_load64,
    pp_lock,
    pp_store64,
    pp_unlock,
)
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from pagepool.errors import PagePoolError

if not cython.compiled:
    raise ImportError("pagepool._core is compiled: run `make build`, or `pip install .`")


class Arena:
    """Page records and free lists of one reservation.

    Parameters
    ----------
    base_vaddr : int
        First byte of the reservation, a multiple of 2 MiB.
    nr_slabs : int
        Length of the reservation in slabs of 2 MiB. No slab has memory until `add_slab`.

    Notes
    -----
    Context: every method may be called from any thread; one lock, held for some dozen instructions, never over Python.
    """

    def __cinit__(self, base_vaddr: uint64_t, nr_slabs: uint32_t):
        if nr_slabs == 0 or nr_slabs > (1 << 22):
            raise ValueError(f"nr_slabs {nr_slabs} is out of range: 1 to {1 << 22}")
        if base_vaddr & 0x1FFFFF:
            raise ValueError(f"base_vaddr {base_vaddr:#x} is not a multiple of 2 MiB")
        self.base_vaddr = base_vaddr
        self.nr_slabs = nr_slabs
        self.nr_pages = nr_slabs * PAGES_PER_SLAB
        # Zeroed by the kernel at a touch, and charged to nobody before: records of slabs that never come cost nothing,
        # nor does a fork of a process with many arenas.
        records: cython.p_void = mmap(
            cython.NULL,
            self.nr_pages * cython.sizeof(pp_page_t),
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
            -1,
            0,
        )
        if records == MAP_FAILED:
            raise MemoryError("no address space for the page records")
        self.pages = cython.cast(cython.pointer[pp_page_t], records)
        self._slab_on = cython.cast(cython.pointer[uint8_t], calloc(nr_slabs, 1))
        if self._slab_on == cython.NULL:
            raise MemoryError("no memory for the slab states")
        self.dma_maps = {}
        self._free_slots = []
        self._next_slot = 1
        self._first_nid = -1
        node: cython.int
        order: cython.int
        for node in range(NR_NODES):
            for order in range(NR_ORDERS):
                self._free_list[node][order] = NO_PAGE

    def __dealloc__(self):
        if self.pages != cython.NULL:
            munmap(self.pages, self.nr_pages * cython.sizeof(pp_page_t))
        free(self._slab_on)

    # -- slabs ---------------------------------------------------------------------------------------------------

    def add_slab(self, index: int, nid: int = 0) -> None:
        """Take a slab into the allocator: its memory is ready, its pages become free.

        Parameters
        ----------
        index : int
            Which slab of the arena.
        nid : int
            NUMA node the memory really is on, 0 to 63.

        Raises
        ------
        ValueError
            No such slab or node, or the slab is there already.
        """
        if not 0 <= index < self.nr_slabs:
            raise ValueError(f"slab {index} is out of range: 0 to {self.nr_slabs - 1}")
        if not 0 <= nid < NR_NODES:
            raise ValueError(f"node {nid} is out of range: 0 to {NR_NODES - 1}")
        slab: uint32_t = index
        first: uint32_t = slab * PAGES_PER_SLAB
        i: uint32_t
        there: cython.bint
        pp_lock(cython.address(self._lock))
        there = self._slab_on[slab]
        if not there:
            self._slab_on[slab] = 1
            for i in range(first, first + PAGES_PER_SLAB):
                self.pages[i].word = PG_OFF
                self.pages[i].nid = nid
            if self._first_nid < 0:
                self._first_nid = nid
                self._nodes_seen = 1
            elif self._first_nid != nid:
                self._nodes_seen = 2
            self._nr_added += PAGES_PER_SLAB
            self._dry_nodes &= ~(cython.cast(uint64_t, 1) << cython.cast(uint32_t, nid))
            self._give_block(first, SLAB_ORDER)
        pp_unlock(cython.address(self._lock))
        if there:
            raise ValueError(f"slab {index} was added already")

    def remove_slab(self, index: int) -> bool:
        """Take a wholly free slab out again, unmapping it from every device first.

        Returns
        -------
        bool
            ``False`` if a page of it is in use, or it was never added: nothing changed.
        """
        if not 0 <= index < self.nr_slabs:
            raise ValueError(f"slab {index} is out of range: 0 to {self.nr_slabs - 1}")
        slab: uint32_t = index
        first: uint32_t = slab * PAGES_PER_SLAB
        whole: cython.bint
        pp_lock(cython.address(self._lock))
        whole = (
            self._slab_on[slab] != 0
            and pg_state(self.pages[first].word) == PG_BUDDY
            and self.pages[first].order == SLAB_ORDER
        )
        if whole:
            # Nobody can be given a page of it any more: unmapping may now take its time, and may fail.
            self._unlink(first)
            self._nr_free -= PAGES_PER_SLAB
        pp_unlock(cython.address(self._lock))
        if not whole:
            return False
        try:
            for dma_map in list(self.dma_maps.values()):
                dma_map.unmap_slab(index)
        except BaseException:
            pp_lock(cython.address(self._lock))
            self._give_block(first, SLAB_ORDER)
            pp_unlock(cython.address(self._lock))
            raise
        pp_lock(cython.address(self._lock))
        self._slab_on[slab] = 0
        self._nr_added -= PAGES_PER_SLAB
        self.pages[first].word = PG_OFF
        pp_unlock(cython.address(self._lock))
        return True

    def slab_state(self, index: int) -> bool:
        """Whether slab `index` is in the allocator."""
        return 0 <= index < self.nr_slabs and self._slab_on[cython.cast(uint32_t, index)] != 0

    def slab_nid(self, index: int) -> int:
        """NUMA node of slab `index`."""
        if not self.slab_state(index):
            raise ValueError(f"slab {index} has no memory")
        return self.pages[cython.cast(uint32_t, index) * PAGES_PER_SLAB].nid

    def free_slabs(self) -> list:
        """Indexes of the slabs that are wholly free."""
        found = []
        i: uint32_t
        for i in range(self.nr_slabs):
            if (
                self._slab_on[i]
                and pg_state(self.pages[i * PAGES_PER_SLAB].word) == PG_BUDDY
                and self.pages[i * PAGES_PER_SLAB].order == SLAB_ORDER
            ):
                found.append(i)
        return found

    # -- blocks --------------------------------------------------------------------------------------------------

    def alloc_block(self, order: int = 0, nid: int = 0) -> int:
        """Take one free block of 2**order pages, for tests and for those who want no pool.

        Returns
        -------
        int
            Id of its first page.

        Raises
        ------
        MemoryError
            No such block, and none could be made.
        """
        if not 0 <= order < NR_ORDERS:
            raise ValueError(f"order {order} is out of range: 0 to {SLAB_ORDER}")
        page_id: uint32_t = NO_PAGE
        while self.alloc_bulk(order, 1, nid, ALLOC_ANY_NODE, cython.address(page_id)) == 0:
            if self.grow is None or not self.grow(order, nid):
                raise MemoryError(f"no free block of order {order}")
        # What tells it from a page on its way into a pool, which has no slot yet either.
        pp_store64(cython.address(self.pages[page_id].word), pg_word(PG_FRESH, 0, PG_HANDLE))
        return page_id

    def free_id(self, page_id: int) -> None:
        """Give a block of `alloc_block` back; anything else is a `ValueError`."""
        # The exchange lets one of two callers win.
        word: uint64_t = 0
        at: cython.pointer[uint64_t] = cython.NULL
        if 0 <= page_id < self.nr_pages:
            at = cython.address(self.pages[cython.cast(uint32_t, page_id)].word)
            word = pp_load64(at)
        if word != pg_word(PG_FRESH, 0, PG_HANDLE) or not pp_cas64(at, word, PG_OFF):
            raise ValueError(f"page {page_id} is not a block that was taken here")
        self.free_block(page_id, self.pages[cython.cast(uint32_t, page_id)].order)

    def alloc_bulk(self, order, n, nid, mode, out):
        done: uint32_t = 0
        pages: uint32_t = cython.cast(uint32_t, 1) << order
        head: uint32_t
        node: uint32_t
        first: uint32_t = cython.cast(uint32_t, nid) if 0 <= nid < NR_NODES else 0
        floor: uint64_t = 0 if mode == ALLOC_RESERVE else self.reserve_pages
        pp_lock(cython.address(self._lock))
        while done < n:
            if self._nr_free < floor + pages:
                break
            head = self._take_block(order, first)
            if head == NO_PAGE and mode != ALLOC_THIS_NODE:
                for node in range(NR_NODES):
                    head = self._take_block(order, node)
                    if head != NO_PAGE:
                        break
            if head == NO_PAGE:
                break
            self.pages[head].order = cython.cast(uint8_t, order)
            pp_store64(
                cython.address(self.pages[head].word),
                pg_word(PG_FRESH, 0, PG_PFMEMALLOC if self._nr_free < self.reserve_pages + pages else 0),
            )
            self._nr_free -= pages
            out[done] = head
            done += 1
        if done:
            self._alloc_calls += 1
            self._pages_allocated += cython.cast(uint64_t, done) * pages
        pp_unlock(cython.address(self._lock))
        return done

    def free_block(self, id, order):
        pp_lock(cython.address(self._lock))
        self._free_calls += 1
        self._pages_freed += cython.cast(uint64_t, 1) << order
        self._give_block(id, order)
        pp_unlock(cython.address(self._lock))

    def _take_block(self, order, nid):
        at: uint32_t = order
        while at < NR_ORDERS and self._free_list[nid][at] == NO_PAGE:
            at += 1
        if at == NR_ORDERS:
            return NO_PAGE
        head: uint32_t = self._free_list[nid][at]
        self._unlink(head)
        while at > order:  # the upper half of each split stays free
            at -= 1
            self._push(head + (cython.cast(uint32_t, 1) << at), at)
        return head

    def _give_block(self, id, order):
        # Merge upwards as far as the buddy is free and whole. A slab is the highest order: it never leaves its slab.
        at: uint32_t = order
        head: uint32_t = id
        buddy: uint32_t
        self._nr_free += cython.cast(uint64_t, 1) << order
        while at < SLAB_ORDER:
            buddy = head ^ (cython.cast(uint32_t, 1) << at)
            if pg_state(self.pages[buddy].word) != PG_BUDDY or self.pages[buddy].order != at:
                break
            self._unlink(buddy)
            pp_store64(cython.address(self.pages[buddy].word), PG_OFF)
            pp_store64(cython.address(self.pages[head].word), PG_OFF)
            if buddy < head:
                head = buddy
            at += 1
        self._push(head, at)

    def _push(self, id, order):
        page: cython.pointer[pp_page_t] = cython.address(self.pages[id])
        nid: uint32_t = page.nid
        page.order = cython.cast(uint8_t, order)
        page.prev = NO_PAGE
        page.next = self._free_list[nid][order]
        if page.next != NO_PAGE:
            self.pages[page.next].prev = id
        self._free_list[nid][order] = id
        pp_store64(cython.address(page.word), PG_BUDDY)

    def _unlink(self, id):
        page: cython.pointer[pp_page_t] = cython.address(self.pages[id])
        if page.prev != NO_PAGE:
            self.pages[page.prev].next = page.next
        else:
            self._free_list[page.nid][page.order] = page.next
        if page.next != NO_PAGE:
            self.pages[page.next].prev = page.prev
        pp_store64(cython.address(page.word), PG_OFF)

    def is_dry(self, nid):
        return 0 <= nid < NR_NODES and (self._dry_nodes >> nid) & 1 != 0

    def note_dry(self, nid):
        # Until a slab of that node comes after all; else every miss would commit another slab elsewhere.
        if 0 <= nid < NR_NODES:
            pp_lock(cython.address(self._lock))
            self._dry_nodes |= cython.cast(uint64_t, 1) << nid
            pp_unlock(cython.address(self._lock))

    def preferred_node(self, nid):
        # NUMA_NO_NODE is "where I run". With one node there is nothing to ask the kernel.
        if nid >= 0:
            return nid
        if self._nodes_seen <= 1 and not self.follow_cpu:
            return self._first_nid if self._first_nid >= 0 else 0
        return pp_current_node()

    # -- pools of this arena -------------------------------------------------------------------------------------

    def new_slot(self):
        with cython.critical_section(self):
            if self.only_pools is not None:
                raise PagePoolError(f"no other pool may use {self!r}: {self.only_pools}")
            self.pools_made += 1
            if self._free_slots:
                return self._free_slots.pop()
            if self._next_slot > 0xFFFF:
                raise MemoryError("65535 pools share this arena; close some")
            self._next_slot += 1
            return self._next_slot - 1

    def drop_slot(self, slot):
        with cython.critical_section(self):
            self._free_slots.append(slot)

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Length of the reservation in bytes."""
        return cython.cast(uint64_t, self.nr_slabs) << 21

    @property
    def nr_free_pages(self) -> int:
        """Pages of 4 KiB that the allocator could hand out now."""
        return pp_load64(cython.address(self._nr_free))

    @property
    def nr_added_pages(self) -> int:
        """Pages of 4 KiB with memory behind them."""
        return pp_load64(cython.address(self._nr_added))

    @property
    def alloc_calls(self) -> int:
        """How often the page allocator was called for memory, a bulk counting once."""
        return pp_load64(cython.address(self._alloc_calls))

    @property
    def free_calls(self) -> int:
        """How often a block came back."""
        return pp_load64(cython.address(self._free_calls))

    @property
    def pages_allocated(self) -> int:
        """Pages of 4 KiB handed out since the beginning."""
        return pp_load64(cython.address(self._pages_allocated))

    @property
    def pages_freed(self) -> int:
        """Pages of 4 KiB given back since the beginning."""
        return pp_load64(cython.address(self._pages_freed))

    def check(self) -> None:
        """Prove the invariant: free lists and records agree, no two free buddies side by side.

        Raises
        ------
        AssertionError
            Naming the page, if the allocator is corrupt.
        """
        bad: uint32_t = NO_PAGE
        total: uint64_t
        counted: uint64_t
        pp_lock(cython.address(self._lock))
        total = self._walk(cython.address(bad))
        counted = self._nr_free
        pp_unlock(cython.address(self._lock))
        if bad != NO_PAGE:
            raise AssertionError(
                f"page {bad}: on a free list, but its record disagrees, or its buddy is free too and was not merged"
            )
        assert total == counted, f"{total} free pages on the lists, {counted} counted"

    def _walk(self, bad):
        # The pages on the free lists, until one is wrong. No Python: the lock is held, and a garbage collection in here
        # could free a page, which wants it too.
        total: uint64_t = 0
        node: uint32_t
        order: uint32_t
        at: uint32_t
        page: cython.pointer[pp_page_t]
        buddy: cython.pointer[pp_page_t]
        for node in range(NR_NODES):
            for order in range(NR_ORDERS):
                at = self._free_list[node][order]
                while at != NO_PAGE:
                    page = cython.address(self.pages[at])
                    buddy = cython.address(self.pages[at ^ (cython.cast(uint32_t, 1) << order)])
                    if (
                        pg_state(page.word) != PG_BUDDY
                        or page.order != order
                        or page.nid != node
                        or (order < SLAB_ORDER and pg_state(buddy.word) == PG_BUDDY and buddy.order == order)
                    ):
                        bad[0] = at
                        return total
                    total += cython.cast(uint64_t, 1) << order
                    at = page.next
        return total

    def __reduce__(self):
        raise TypeError("an Arena is memory of this process and cannot be pickled")

    def __repr__(self) -> str:
        return (
            f"<Arena at vaddr {self.base_vaddr:#x}: {self.nr_added_pages} pages of 4 KiB, "
            f"{self.nr_free_pages} free, {self.size_bytes >> 20} MiB reserved>"
        )

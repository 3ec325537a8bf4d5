# SPDX-License-Identifier: MIT
"""The three tiers of a pool, over ids: the owner's cache, the ptr_ring, the page allocator.

This is `page_pool.c` without handles. Everything here moves 32-bit ids; `PagePool` gives them a face. Drivers and
loops call `alloc_ids` and `put_ids` without the GIL.

Who may do what:

* The cache and the allocation counters belong to the *owner*, the thread that allocates. No lock, no atomic.
* Any thread may put: not being the owner, it takes the ring under the producer lock.
* The slow path (mapping, growing, zeroing, releasing) holds the GIL, because a device may be Python.

Invariant (`check` proves it): hold = cached + ringed + lent + released. An id in the cache or in the ring counts only
while the page's word says so: where two threads return one page in the same instant, which is a bug of theirs, the
word settles on one of the two places and the other entry is passed over. So no page is ever handed out twice. One such
moment is not covered: one of the two is the owner, in a run of plain pages, and the other finds the ring full, so that
the page leaves the pool under the owner's store.
"""

import cython
from cython.cimports.libc.stdint import int32_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memset
from cython.cimports.pagepool._core.arena import (
    ALLOC_ANY_NODE,
    ALLOC_RESERVE,
    ALLOC_THIS_NODE,
    PG_CACHED,
    PG_DETACHED,
    PG_FRESH,
    PG_HANDLE,
    PG_LENT,
    PG_MAPPED,
    PG_MM_SHIFT,
    PG_PFMEMALLOC,
    PG_REF_MAX,
    PG_REF_SHIFT,
    PG_SPENT,
    pg_mm,
    pg_refs,
    pg_slot,
    pg_state,
    pg_with_state,
    pg_word,
    pp_page_t,
)
from cython.cimports.pagepool._core.atomic import (
    pp_add32,
    pp_add64,
    pp_cas64,
    pp_likely,
    pp_load32,
    pp_load64,
    pp_lock,
    pp_store32_release,
    pp_store64,
    pp_sub64,
    pp_thread_id,
    pp_unlikely,
    pp_unlock,
)
from cython.cimports.pagepool._core.dma_map import MAP_PAGE

from pagepool.errors import DoublePutError, ForeignPageError, PoolClosedError, WrongThreadError


class Tiers(Home):
    """Base of `PagePool`; not for direct use."""

    # -- the owner -----------------------------------------------------------------------------------------------

    def enter_owner(self):
        me: uintptr_t = pp_thread_id()
        with cython.critical_section(self):
            if self.owner == 0:  # the first thread to allocate owns the pool
                self.owner = me
                self.set_fast_threads()
            if self.owner != me:
                raise WrongThreadError(
                    f"{self!r} belongs to another thread; pages are put from anywhere, but taken by one. "
                    "Call pool.claim() here once the other thread is done with it, or make a pool for each thread"
                )
            self.busy += 1
        return 0

    def leave_owner(self):
        with cython.critical_section(self):
            self.busy -= 1
        if self.pending is not None:
            self.raise_pending()
        return 0

    def note_pending(self, error):
        # What a slow path raises while the loop around it runs without the GIL waits for the loop's end; by thread, for
        # many may be in such loops, and each is to hear of its own. Refusals are answered by a smaller count; anything
        # else (Ctrl-C first of all) is the caller's to see, and the first of a loop stays.
        if isinstance(error, (OSError, MemoryError, PoolClosedError)):
            return
        with cython.critical_section(self):
            if self.pending is None:
                self.pending = {}
            self.pending.setdefault(pp_thread_id(), error)

    def taken_pending(self):
        # This thread's, or None.
        error: object = None
        with cython.critical_section(self):
            if self.pending is not None:
                error = self.pending.pop(pp_thread_id(), None)
                if not self.pending:
                    self.pending = None
        return error

    def raise_pending(self):
        error = self.taken_pending()
        if error is not None:
            raise error
        return 0

    def the_observer(self):
        with cython.critical_section(self):  # `set_observer` may drop the old one this very moment
            return self.observer

    def set_fast_threads(self):
        # The fast ways test one word: the owner's thread where nothing special is wanted, else 0, nobody.
        fast: cython.bint = self.open and not self.track
        self.alloc_thread = self.owner if fast else 0
        self.put_thread = self.owner if fast and self.auto_direct and not self.sync else 0
        return 0

    # -- taking --------------------------------------------------------------------------------------------------

    def get_one(self):
        # First tier, then second. The page is in transit: its word still says cached.
        id: uint32_t
        while self.cache_n:
            self.cache_n -= 1
            id = self.cache[self.cache_n]
            if pp_likely(pp_load64(cython.address(self.pages[id].word)) == self.word_cached):
                self.alloc_fast += 1
                return id
        return self.refill()

    def refill(self):
        there: uint32_t = self.ring.count()
        if there == 0 or not self.open:  # closed: what is in the ring is the closing thread's, see `destroy`
            self.alloc_empty += 1
            return NO_PAGE
        if there > CACHE_REFILL:
            there = CACHE_REFILL
        nid: int32_t = -1
        if self.nid >= 0 or self.arena._nodes_seen > 1 or self.arena.follow_cpu:
            nid = self.arena.preferred_node(self.nid)
        taken: uint32_t = 0
        stray: uint32_t = NO_PAGE
        id: uint32_t
        while taken < there:
            id = self.ring.slots[(self.ring.tail + taken) & self.ring.mask]
            taken += 1
            if pp_unlikely(pp_load64(cython.address(self.pages[id].word)) != self.word_ringed):
                continue
            if pp_unlikely(nid >= 0 and self.pages[id].nid != nid):
                stray = id  # one page a refill: moving to another node must not storm the page allocator
                break
            pp_store64(cython.address(self.pages[id].word), self.word_cached)
            self.cache[self.cache_n] = id
            self.cache_n += 1
        # Release pairs with the acquire in room_locked: producers may write over these entries now.
        pp_store32_release(cython.address(self.ring.tail), self.ring.tail + taken)
        if stray != NO_PAGE:
            self.alloc_waive += 1
            with cython.gil:
                self.leave_noexcept(stray, LEFT_WAIVE)
        if self.cache_n == 0:
            return NO_PAGE
        self.alloc_refill += 1
        self.cache_n -= 1
        return self.cache[self.cache_n]

    def slow(self):
        # Third tier. Returns one page in transit (word: cached) and leaves the rest in the cache.
        if not self.open:
            raise PoolClosedError(f"{self!r} is closed")
        want: uint32_t = CACHE_REFILL if self.order == 0 else 1
        if self.limit:
            room: uint32_t = self.limit - held_by(self)
            if cython.cast(int32_t, room) <= 0:
                self.limit_hits += 1
                return NO_PAGE
            want = min(want, room)
        nid: int32_t = self.arena.preferred_node(self.nid)
        fresh: uint32_t[CACHE_REFILL]
        n: uint32_t
        i: uint32_t
        id: uint32_t
        best: uint32_t = NO_PAGE
        stop: cython.bint = False
        refused: object = None
        n = self.arena.alloc_bulk(self.order, want, nid, ALLOC_THIS_NODE, fresh)
        if n == 0 and self.arena.is_dry(nid):  # growing for this node gave none of it: take what others have first
            n = self.arena.alloc_bulk(self.order, want, nid, ALLOC_ANY_NODE, fresh)
        while n == 0 and self.arena.grow is not None and self.arena.grow(self.order, self.nid):
            n = self.arena.alloc_bulk(self.order, want, nid, ALLOC_THIS_NODE, fresh)
            if n == 0:  # it grew on another node, or another pool was faster
                self.arena.note_dry(nid)
                n = self.arena.alloc_bulk(self.order, want, nid, ALLOC_ANY_NODE, fresh)
        if n == 0:
            n = self.arena.alloc_bulk(self.order, want, nid, ALLOC_ANY_NODE, fresh)
        if n == 0:
            n = self.arena.alloc_bulk(self.order, 1, nid, ALLOC_RESERVE, fresh)
        for i in range(n):
            id = fresh[i]
            # Entering a page may run Python (a device, an observer), and Python may take, put, close: look anew.
            if stop or not self.open or (self.limit and held_by(self) >= self.limit):
                self.arena.free_block(id, self.order)
                continue
            try:
                self.enter_page(id)
            except BaseException as error:
                # The page never came in: straight back. Others of the bulk are tried, as in the kernel, but not
                # after an exception that is no refusal.
                pp_add64(cython.address(self.left[LEFT_MAP]), 1)
                self.arena.free_block(id, self.order)
                refused = error
                stop = not isinstance(error, OSError)
                continue
            if best != NO_PAGE:
                self.keep(best)
            best = id
        if best != NO_PAGE and (stop or not self.open):
            self.keep(best)
            best = NO_PAGE
        if best == NO_PAGE:
            if refused is not None:
                raise refused
            if not self.open:
                raise PoolClosedError(f"{self!r} was closed meanwhile")
            return NO_PAGE
        if self.order:
            self.alloc_slow_high_order += 1
        else:
            self.alloc_slow += 1
        if self.watermark is not None:
            try:
                self.crossed()
            except BaseException as error:  # the page is the caller's first
                self.note_pending(error)
        return best

    def keep(self, id):
        # A page that came in goes to the cache, unless Python has filled or closed it meanwhile.
        word: uint64_t = pp_load64(cython.address(self.pages[id].word))
        if self.open and self.cache_n < CACHE_SIZE and word == self.word_cached:
            self.cache[self.cache_n] = id
            self.cache_n += 1
        else:
            self.leave_noexcept(id, LEFT_RING_FULL if self.open else LEFT_CLOSED)

    def slow_noexcept(self):
        try:
            return self.slow()
        except BaseException as error:
            self.note_pending(error)
            return NO_PAGE

    def crossed(self):
        # Call the watermark's callback when the pages held cross it; `PagePool` knows how.
        return 0

    def enter_page(self, id):
        # From the page allocator into the pool: clear, map, sync, account. Raises with nothing kept.
        flags: uint64_t = pp_load64(cython.address(self.pages[id].word)) & PG_PFMEMALLOC
        vaddr: uint64_t = self.arena.base_vaddr + (cython.cast(uint64_t, id) << 12)
        if self.zero:
            memset(cython.cast(cython.p_void, cython.cast(uintptr_t, vaddr)), 0, self.object_bytes)
        if self.map_mode == MAP_PAGE:
            self.pages[id].dma_addr = self.dev.map(vaddr, self.object_bytes, self.dma_dir_obj)
            pp_add64(cython.address(self.page_maps), 1)
            flags |= PG_MAPPED
        elif self.map_mode != NO_MAP:
            self.dma_map.ensure(id >> 9)
        pp_store64(cython.address(self.pages[id].word), pg_word(PG_FRESH, self.slot, flags))
        if self.sync:
            try:
                self.sync_for_device(id, -1)
            except BaseException:
                self.unmap_page(id)
                raise
        pp_store64(cython.address(self.pages[id].word), pg_word(PG_CACHED, self.slot, flags))
        self.hold_cnt += 1
        self.mark += 1
        observer = self.the_observer()
        if observer is not None:
            try:
                observer("hold", id, self.hold_cnt)
            except BaseException as error:  # the page is in; the caller hears of it on the way out
                self.note_pending(error)
        return 0

    def alloc_ids(self, out, n):
        done: uint32_t = 0
        id: uint32_t
        special: uint64_t
        while True:
            done += self.hit_run(out + done, n - done)
            if done == n:
                break
            id = self.refill()
            if id == NO_PAGE:
                with cython.gil:
                    id = self.slow_noexcept()
                if id == NO_PAGE:
                    break
            special = pp_load64(cython.address(self.pages[id].word)) & PG_PFMEMALLOC
            pp_store64(cython.address(self.pages[id].word), self.word_lent | special)
            out[done] = id
            done += 1
        if self.cache_n < self.mark:
            self.note_high_water()
        return done

    def hit_run(self, out, n):
        # As many as the cache has, newest first. Locals, because a store to a page's word could be a store to any
        # field of the pool for all the compiler knows.
        done: uint32_t = 0
        id: uint32_t
        at: uint32_t = self.cache_n
        pages: cython.pointer[pp_page_t] = self.pages
        home: uint64_t = self.word_cached
        lent: uint64_t = self.word_lent
        while done < n and at:
            at -= 1
            id = self.cache[at]
            if pp_unlikely(pp_load64(cython.address(pages[id].word)) != home):
                continue
            pp_store64(cython.address(pages[id].word), lent)
            out[done] = id
            done += 1
        self.cache_n = at
        self.alloc_fast += done
        return done

    def lent_now(self):
        return held_by(self) - self.cache_n - self.leaving - self.ring.count()

    def note_high_water(self):
        # A record needs fewer than `mark` pages at home. Pages in the ring are at home too, so the ring is looked at
        # (and its cache line fetched from the producers) only below the mark.
        held: uint32_t = held_by(self)
        lent: uint32_t = held - self.cache_n - self.ring.count()
        if cython.cast(int32_t, lent - self.high_water) > 0:
            self.high_water = lent
        self.mark = held - self.high_water if held > self.high_water else 0

    # -- giving back ---------------------------------------------------------------------------------------------

    def put_ids(self, ids, n, dma_sync_size, direct):
        # A batch home. `direct`: the caller is the owner (between enter_owner and leave_owner). Runs of plain pages go
        # to the cache, then under one producer lock to the ring; a page about which anything is special goes alone.
        i: uint32_t = 0
        id: uint32_t
        run: uint32_t
        done: uint32_t = 0
        full: cython.bint = False
        plain: cython.bint = self.open and not self.sync
        while i < n:
            if plain and direct:
                run = self.cache_run(ids + i, n - i)
                i += run
                done += run
                if i == n:
                    break
            if plain and (not direct or self.cache_n == CACHE_SIZE):
                run = self.ring_run(ids + i, n - i)
                i += run
                done += run
                if direct:
                    self.recycle_cache_full += run
                if i == n:
                    break
            id = pp_load32(ids + i)  # once: the array is the caller's, who may write to it
            if plain and self.ring.room_locked() == 0 and id < self.nr_pages and self.seize(id):
                if direct:
                    self.recycle_cache_full += 1
                if not full:  # the kernel counts a full ring once for a bulk
                    pp_add64(cython.address(self.ring.nr_full), 1)
                    full = True
                with cython.gil:
                    self.leave_noexcept(id, LEFT_RING_FULL)
                done += 1
            else:
                with cython.gil:
                    done += self.put_id_noexcept(id, dma_sync_size, direct, cython.address(full))
            i += 1
        return done

    def cache_run(self, ids, n):
        # As many leading plain pages as the cache has room for. A function of its own: its values stay in registers.
        i: uint32_t = 0
        id: uint32_t
        at: uint32_t = self.cache_n
        cache: cython.pointer[uint32_t] = self.cache + at
        word: uint64_t
        pages: cython.pointer[pp_page_t] = self.pages
        nr_pages: uint32_t = self.nr_pages
        home: uint64_t = self.word_cached
        lent: uint64_t = self.word_lent
        if n > CACHE_SIZE - at:
            n = CACHE_SIZE - at
        while i < n:
            id = ids[i]  # once, as in ring_run; an atomic load would cost a seventh of the loop
            if pp_unlikely(id >= nr_pages):
                break
            word = pp_load64(cython.address(pages[id].word))
            if pp_unlikely(word != lent):
                if word != self.word_lent_handle:
                    break
                pages[id].generation += 1
            pp_store64(cython.address(pages[id].word), home)
            cache[i] = id
            i += 1
        self.cache_n = at + i
        self.recycle_cached += i
        return i

    def ring_run(self, ids, n):
        # As many leading plain pages as the ring has room for, under one lock.
        i: uint32_t = 0
        id: uint32_t
        word: uint64_t
        pages: cython.pointer[pp_page_t] = self.pages
        pp_lock(cython.address(self.ring.lock))
        # Once: the consumer takes no lock, so the room may grow from one look to the next, past n.
        room: uint32_t = self.ring.room_locked()
        if self.ring.closed:
            n = 0
        elif n > room:
            n = room
        while i < n:
            id = pp_load32(ids + i)
            if pp_unlikely(id >= self.nr_pages):
                break
            word = pp_load64(cython.address(pages[id].word))
            if pp_unlikely(word != self.word_lent):
                if word != self.word_lent_handle:
                    break
                pages[id].generation += 1
            pp_store64(cython.address(pages[id].word), self.word_ringed)
            self.ring.push_locked(id)
            i += 1
        self.ring.nr_produced += i
        pp_unlock(cython.address(self.ring.lock))
        return i

    def seize(self, id):
        # Take a plain lent page out of everybody's reach; false if it is not that.
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        word: uint64_t = pp_load64(at)
        if word != self.word_lent and word != self.word_lent_handle:
            return False
        if not pp_cas64(at, word, pg_with_state(word, PG_FRESH)):
            return False
        if word & PG_HANDLE:
            self.pages[id].generation += 1
        return True

    def put_id_noexcept(self, id, dma_sync_size, direct, full):
        if id >= self.nr_pages:
            pp_add64(cython.address(self.rejected), 1)
            return 0
        try:
            self.put_id(id, dma_sync_size, direct, True, full)
        except (DoublePutError, ForeignPageError):
            pp_add64(cython.address(self.rejected), 1)
            return 0
        except BaseException as error:
            # A device refused to sync or unmap; the page went home all the same.
            self.note_pending(error)
        return 1

    def put_id(self, id, dma_sync_size, direct, holder, full):
        # Drop one pool reference; the last one decides. The GIL is held. `holder`: it is the holder's own, which can
        # be given back once, whoever asks: while a view keeps the page lent, the word remembers that it is gone.
        # `full`: NULL, or whether this bulk has counted that the ring is full.
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        spent: uint64_t = PG_SPENT if holder else 0
        word: uint64_t
        while True:
            word = pp_load64(at)
            if pg_slot(word) != self.slot:
                raise ForeignPageError(f"page {id} is not lent by {self!r}: it belongs to another pool or to none")
            if pg_state(word) != PG_LENT:
                raise DoublePutError(f"page {id} was put{self.where_put(id)} already; {self!r} holds it")
            if word & spent:
                raise DoublePutError(f"page {id} was put{self.where_put(id)} already; views or fragments keep it lent")
            if pg_refs(word) > 1:
                if pp_cas64(at, word, (word - (cython.cast(uint64_t, 1) << PG_REF_SHIFT)) | spent):
                    return 0
            # The last one: PG_FRESH takes the page out of everybody's reach while its fate is decided.
            elif pp_cas64(at, word, pg_with_state(word, PG_FRESH)):
                return self.last_reference(id, word, dma_sync_size, direct, full)

    def last_reference(self, id, word, dma_sync_size, direct, full):
        ring: PtrRing = self.ring
        ringed: cython.bint = False
        closed: cython.bint
        if word & PG_HANDLE:
            self.pages[id].generation += 1
        if pg_mm(word) != 1 or word & PG_PFMEMALLOC:  # counted after the end too, as the kernel does
            pp_add64(cython.address(self.recycle_released_refcnt), 1)
            self.leave(id, LEFT_REFCNT)
            return 0
        if not self.open:
            self.leave(id, LEFT_CLOSED)
            return 0
        if self.sync:
            try:
                self.sync_for_device(id, dma_sync_size)
            except BaseException:
                self.leave(id, LEFT_SYNC)
                raise
        if direct:
            with cython.critical_section(self):
                # Still the owner's, and still open: the sync above may have let others run.
                if self.owner == pp_thread_id() and self.open:
                    if self.cache_n < CACHE_SIZE:
                        pp_store64(cython.address(self.pages[id].word), self.word_cached)
                        self.cache[self.cache_n] = id
                        self.cache_n += 1
                        self.recycle_cached += 1
                        return 0
                    self.recycle_cache_full += 1
        pp_lock(cython.address(ring.lock))
        closed = ring.closed != 0
        if not closed and ring.room_locked():
            pp_store64(cython.address(self.pages[id].word), self.word_ringed)
            ring.push_locked(id)
            ring.nr_produced += 1
            ringed = True
        elif not closed and (full == cython.NULL or not full[0]):  # the kernel counts it once for a bulk
            pp_add64(cython.address(ring.nr_full), 1)  # as a bulk does, without the lock
            if full != cython.NULL:
                full[0] = True
        pp_unlock(cython.address(ring.lock))
        if ringed:
            return 0
        self.leave(id, LEFT_CLOSED if closed else LEFT_RING_FULL)
        return 0

    def leave(self, id, reason):
        # Out of the pool at a predictable point: unmap, account, give the memory back. The page is in nobody's reach
        # (its word says fresh, cached in transit, or ringed in transit). A device that refuses to unmap does not keep
        # the page: it leaves first, then the exception goes on.
        refused: object = None
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        word: uint64_t
        try:
            self.unmap_page(id)
        except BaseException as error:
            refused = error
        pp_add64(cython.address(self.left[reason]), 1)
        count: uint32_t = pp_add32(cython.address(self.release_cnt), 1) + 1
        # From here on the pool counts it no more; what is left are the foreign references, ours among them.
        while True:
            word = pp_load64(at)
            if pp_cas64(at, word, (cython.cast(uint64_t, pg_mm(word)) << PG_MM_SHIFT) | PG_DETACHED):
                break
        self.drop_mm(id, 1)
        observer = self.the_observer()
        if observer is not None:
            try:
                observer("release", id, count)
            except BaseException as error:
                refused = error
        if refused is not None:
            raise refused
        return 0

    def leave_noexcept(self, id, reason):
        try:
            self.leave(id, reason)
        except BaseException as error:
            self.note_pending(error)

    def unmap_page(self, id):
        # Exactly once, however many ask: the flag in the word decides.
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        word: uint64_t
        while True:
            word = pp_load64(at)
            if not word & PG_MAPPED:
                return 0
            if pp_cas64(at, word, word & ~cython.cast(uint64_t, PG_MAPPED)):
                break
        pp_add64(cython.address(self.page_unmaps), 1)
        self.dev.unmap(self.pages[id].dma_addr, self.object_bytes, self.dma_dir_obj)
        return 0

    def unmap_lent(self, id):
        # At the end, of a page that somebody holds. A reference of our own keeps its memory until the device has let go
        # of it: the holder may put it meanwhile.
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        one: uint64_t = cython.cast(uint64_t, 1) << PG_REF_SHIFT
        word: uint64_t
        while True:
            word = pp_load64(at)
            if pg_slot(word) != self.slot or pg_state(word) != PG_LENT or not word & PG_MAPPED:
                return 0
            if pg_refs(word) == PG_REF_MAX:
                return self.unmap_page(id)
            if pp_cas64(at, word, (word & ~cython.cast(uint64_t, PG_MAPPED)) + one):
                break
        pp_add64(cython.address(self.page_unmaps), 1)
        try:
            self.dev.unmap(self.pages[id].dma_addr, self.object_bytes, self.dma_dir_obj)
        finally:
            self.put_id(id, -1, False, False, cython.NULL)
        return 0

    def drop_mm(self, id, n):
        # Foreign references go; with the last one of a page that left its pool, the memory goes back.
        one: uint64_t = cython.cast(uint64_t, n) << PG_MM_SHIFT
        word: uint64_t = pp_sub64(cython.address(self.pages[id].word), one)
        if pg_state(word) == PG_DETACHED and pg_mm(word) == n:
            self.arena.free_block(id, self.pages[id].order)

    def put_referenced(self, id):
        # A put that finds a foreign reference, which then goes too: the slowest way a page can travel.
        pp_add64(cython.address(self.pages[id].word), cython.cast(uint64_t, 1) << PG_MM_SHIFT)
        with cython.gil:
            self.put_id_noexcept(id, -1, True, cython.NULL)
        self.drop_mm(id, 1)

    def sync_for_device(self, id, dma_sync_size):
        # As much as the device may have written, at most max_len, at the pool's offset.
        size: uint64_t = self.max_len
        if dma_sync_size >= 0 and cython.cast(uint64_t, dma_sync_size) < size:
            size = dma_sync_size
        if size:
            self.dev.sync_for_device(self.dma_addr_of(id) + self.dma_offset, size, self.dma_dir_obj)
            pp_add64(cython.address(self.syncs), 1)
        return 0

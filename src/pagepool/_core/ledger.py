# SPDX-License-Identifier: MIT
"""What a pool knows of itself: its figures, who holds its pages, and the proof that nothing is lost.

Nothing here changes a page. Reports walk the page records of every slab that has memory; they are for people and for
tests, never for the fast path.
"""

import time

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.pagepool._core.arena import (
    NO_PAGE,
    NR_STATES,
    PAGES_PER_SLAB,
    PG_CACHED,
    PG_FRESH,
    PG_LENT,
    PG_RINGED,
    pg_slot,
    pg_state,
)
from cython.cimports.pagepool._core.atomic import pp_load32, pp_load64, pp_lock, pp_unlock
from cython.cimports.pagepool._core.dma_map import DmaMap
from cython.cimports.pagepool._core.tiers import (
    LEFT_CLOSED,
    LEFT_DETACHED,
    LEFT_MAP,
    LEFT_NID,
    LEFT_REFCNT,
    LEFT_RING_FULL,
    LEFT_SYNC,
    LEFT_WAIVE,
    held_by,
)

from pagepool._core.stats import Holder, PoolStats
from pagepool.errors import PagePoolError


class Ledger(Carver):
    """Base of `PagePool`; not for direct use."""

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

    def count_words(self, counts):
        # By state. No Python: the lock is held, and a garbage collection in here could put a page, which wants it too.
        slab: uint32_t
        number: uint32_t
        word: uint64_t
        for slab in range(self.arena.nr_slabs):
            if self.arena._slab_on[slab]:
                for number in range(slab * PAGES_PER_SLAB, (slab + 1) * PAGES_PER_SLAB):
                    word = pp_load64(cython.address(self.pages[number].word))
                    if pg_slot(word) == self.slot:
                        counts[pg_state(word)] += 1

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
        counts: uint32_t[NR_STATES]
        held: uint32_t
        cached: uint32_t
        ringed: uint32_t
        if self.arena is None:
            return
        for attempt in range(5):
            memset(counts, 0, cython.sizeof(counts))
            pp_lock(cython.address(self.ring.lock))
            self.count_words(counts)
            held = held_by(self)
            cached = self.cache_n
            ringed = self.ring.count()
            pp_unlock(cython.address(self.ring.lock))
            if (
                counts[PG_CACHED] <= cached
                and counts[PG_RINGED] <= ringed
                and counts[PG_CACHED] + counts[PG_RINGED] + counts[PG_LENT] + counts[PG_FRESH] == held
            ):
                return
            time.sleep(0.001 * attempt)
        raise PagePoolError(
            f"{self!r} does not add up: hold {self.hold_cnt} - released {self.release_cnt} = {held}, but the pages say "
            f"cached {counts[PG_CACHED]} (cache holds {cached}), ringed {counts[PG_RINGED]} (ring holds {ringed}), "
            f"lent {counts[PG_LENT]}, in transit {counts[PG_FRESH]}"
        )

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
            site = self.alloc_sites.get(number) if self.alloc_sites is not None else None
            if site is not None:
                since, where = site[0], "at " + site[1]
            groups.setdefault(where, []).append((number, now - since if since else 0.0))
        found = [
            Holder(where, len(held), max(age for _, age in held), tuple(number for number, _ in held))
            for where, held in groups.items()
        ]
        return sorted(found, key=lambda holder: -holder.count)

    def _why_none(self):
        if self.limit and self.inflight >= cython.cast(cython.int, self.limit):
            who = "; ".join(map(str, self.holders()[:3]))
            return f"{self!r} is at its limit of {self.limit} pages: {who}"
        return f"{self!r}: the page allocator has no block of order {self.order}"

    def __repr__(self) -> str:
        state = "" if self.open else ", closed"
        return f"<PagePool {self.id}: {self.lent} lent, {self.inflight} held of {self.object_bytes} bytes{state}>"

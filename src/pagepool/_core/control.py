# SPDX-License-Identifier: MIT
"""Who owns a pool, where it takes pages, who watches it, and how it ends.

Invariant: a destroyed pool hands nothing out and keeps nothing idle; pages that are still lent are good until they are
put, and each mapped page was unmapped exactly once.
"""

import time
import warnings

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.pagepool._core.arena import NO_PAGE, PG_FRESH
from cython.cimports.pagepool._core.atomic import (
    pp_is_finalizing,
    pp_load32,
    pp_load64,
    pp_lock,
    pp_store64,
    pp_thread_id,
    pp_unlock,
)
from cython.cimports.pagepool._core.dma_map import MAP_PAGE
from cython.cimports.pagepool._core.tiers import CACHE_SIZE, LEFT_CLOSED, LEFT_NID

from pagepool._core import registry
from pagepool.errors import PageLeakWarning, PagePoolError, PoolBusyError, PoolClosedError


class Control(Ledger):
    """Base of `PagePool`; not for direct use."""

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
            try:
                observer = self.the_observer()
                if observer is not None:
                    observer("update_nid", 0, nid)
            finally:
                while self.cache_n:
                    self.cache_n -= 1
                    if pp_load64(cython.address(self.pages[self.cache[self.cache_n]].word)) == self.word_cached:
                        self.leave(self.cache[self.cache_n], LEFT_NID)
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
        with cython.critical_section(self):
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
        with cython.critical_section(self):
            self.watermark = [high, low, callback, False]

    def crossed(self):
        with cython.critical_section(self):  # `on_watermark` may drop the old one this very moment
            watermark = self.watermark
        high, low, callback, above = watermark
        held = self.hold_cnt - pp_load32(cython.address(self.release_cnt))
        if not above and held >= high:
            watermark[3] = True
            callback(self, True)
        elif above and held <= low:
            watermark[3] = False
            callback(self, False)
        return 0

    # -- life and death ------------------------------------------------------------------------------------------

    def get_user(self):
        """Take a user reference, as an XDP registration does; the pool is destroyed when the last one goes."""
        with cython.critical_section(self):
            if not self.open:
                raise PoolClosedError(f"{self!r} is closed")
            self.users += 1
        return self

    def put_user(self) -> None:
        """Give a user reference back."""
        with cython.critical_section(self):
            if self.users <= 0:
                raise PagePoolError(f"{self!r} has no users left")
            self.users -= 1
            last: cython.bint = self.users == 0
        if last:
            try:
                self.destroy()
            except PoolBusyError:  # nothing has changed
                with cython.critical_section(self):
                    self.users += 1
                raise

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
        with cython.critical_section(self):
            if not self._creator:
                return
            self._creator = False
        try:
            self.put_user()
        except PoolBusyError:
            self._creator = True
            raise

    def destroy(self):
        refused = None
        number: uint32_t
        cached: uint32_t[CACHE_SIZE]
        n: uint32_t
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
            # The cache is emptied before any Python runs: the owner may come in meanwhile, and is to find nothing.
            n = self.cache_n
            memcpy(cached, self.cache, n * cython.sizeof(uint32_t))
            self.cache_n = 0
            self.leaving = n
            # Whatever a device raises, Ctrl-C too, the rest is still given back; the caller hears of it at the end.
            if self.frag_page != NO_PAGE:
                try:
                    self.drain_frag()
                except BaseException as error:
                    refused = error
            while self.leaving:
                self.leaving -= 1
                number = cached[self.leaving]
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
                        self.unmap_lent(lent)
                    except BaseException as error:
                        refused = error
        if self.inflight > 0:
            self.detach_time = time.monotonic()
        registry.notify("change" if self.inflight > 0 else "del", self.id)
        observer = self.the_observer()
        if observer is not None:
            observer("pool_release", self.id, self.inflight)
        if refused is not None:
            raise refused
        return 0

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

# SPDX-License-Identifier: MIT
"""What a pool counts: the kernel's eleven counters by its rules, and beside them an exact set.

The kernel's rules are odd in places (``fast`` counts fresh pages too, ``slow`` counts calls and not pages, a full ring
counts once for a bulk). They are kept to the letter under the kernel's names, and the exact set answers what they
cannot. Source: ``include/net/page_pool/types.h`` and ``net/core/page_pool.c`` of Linux 6.18.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Figures of one pool at one moment. All are counts of objects unless they say otherwise.

    The first eleven are the kernel's. ``ring_full`` there is bulks, `left_ring_full` is pages.
    """

    fast: int
    """Pops from the cache, pages fresh from a bulk among them, and fragment pages reused in place."""
    slow: int
    """Calls of the page allocator for order 0, a bulk of 64 counting once."""
    slow_high_order: int
    """Calls of the page allocator for a higher order."""
    empty: int
    """Refills tried on an empty ring."""
    refill: int
    """Refills that gave a page."""
    waive: int
    """Pages dropped at refill for their NUMA node."""
    cached: int
    """Puts into the cache."""
    cache_full: int
    """Direct puts that the cache had no room for."""
    ring: int
    """Puts into the ring."""
    ring_full: int
    """Puts that the ring had no room for, a bulk counting once."""
    released_refcnt: int
    """Puts of pages that somebody else still referred to, or that came from the emergency reserve."""

    allocated: int
    """Handed out, ever."""
    fresh: int
    """Taken into the pool from the page allocator, ever."""
    recycled: int
    """Put back into cache or ring, ever."""
    in_cache: int
    in_ring: int
    lent: int
    """Held by somebody outside the pool now."""
    high_water: int
    """Most that were ever lent at once."""
    inflight: int
    """The kernel's word: not yet back at the page allocator, idle pages included."""
    hold_cnt: int
    """Free-running, modulo 2**32."""
    release_cnt: int
    """Free-running, modulo 2**32."""
    left_refcnt: int
    left_ring_full: int
    left_waive: int
    left_nid: int
    left_closed: int
    left_detached: int
    left_sync: int
    """Pages given up because the device would not sync them."""
    map_failed: int
    """Pages that never came in because their mapping failed."""
    limit_hits: int
    """Allocations refused because the pool held `limit` pages."""
    rejected: int
    """Ids of bulk puts that were foreign or not lent."""
    maps: int
    """Mapping calls to the device, for this pool's pages or for slabs it shares."""
    unmaps: int
    syncs: int
    """Sync-for-device calls."""
    object_bytes: int

    @property
    def recycle_ratio(self) -> float:
        """Share of the pages handed out that did not come fresh from the page allocator, 0 to 1."""
        return 1.0 - min(1.0, self.fresh / self.allocated) if self.allocated else 0.0

    def kernel(self) -> dict[str, int]:
        """Return the kernel's eleven with netlink's spelling, ``alloc-fast`` to ``recycle-released-refcnt``."""
        alloc = ("fast", "slow", "slow_high_order", "empty", "refill", "waive")
        recycle = ("cached", "cache_full", "ring", "ring_full", "released_refcnt")
        named = [("alloc-" + n, n) for n in alloc] + [("recycle-" + n, n) for n in recycle]
        return {key.replace("_", "-"): getattr(self, name) for key, name in named}

    def as_dict(self) -> dict[str, int | float]:
        """Return every figure by name, `recycle_ratio` too."""
        figures: dict[str, int | float] = {field.name: getattr(self, field.name) for field in fields(self)}
        figures["recycle_ratio"] = self.recycle_ratio
        return figures


@dataclass(frozen=True, slots=True)
class Holder:
    """Lent pages that were allocated at one place.

    Parameters
    ----------
    where : str
        ``file:line in function``, or why it is not known.
    count : int
        Objects.
    oldest_s : float
        Seconds since the oldest was allocated; 0.0 where not known.
    ids : tuple of int
        Their ids.
    """

    where: str
    count: int
    oldest_s: float
    ids: tuple[int, ...]

    def __str__(self) -> str:
        age = f", oldest {self.oldest_s:.1f} s" if self.oldest_s else ""
        shown = ", ".join(map(str, self.ids[:4])) + (", ..." if len(self.ids) > 4 else "")
        return f"{self.count} allocated {self.where}{age} (pages {shown})"

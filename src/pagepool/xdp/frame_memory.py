# SPDX-License-Identifier: MIT
"""A pool's memory as two NumPy arrays over the whole arena, through which frames are read and written.

Not an allocator and not an owner: it says nothing about who holds a page. Invariant: the arrays, and every
view made from them, keep the arena (and so its mapping) alive; a view that outlives its frame reads recycled
bytes, never unmapped ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pagepool._core.params import PAGE_SIZE
from pagepool.xdp.driver import FramePool, U8Array

__all__ = ["FrameMemory"]


class _ArenaBytes:
    """Show an arena to NumPy; the array made from it holds this object, and this object the arena."""

    def __init__(self, arena: Any) -> None:
        self.arena = arena
        self.keep_alive = getattr(arena, "keep_alive", None)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": (self.arena.size_bytes,),
            "typestr": "|u1",
            "data": (self.arena.base_vaddr, False),
            "strides": None,
        }


class FrameMemory:
    """The arena of a pool as arrays.

    Parameters
    ----------
    pool : FramePool
        Any open pool.

    Attributes
    ----------
    flat : (size_bytes,) uint8
        Byte ``(page_id << 12) + k`` is byte ``k`` of the page. Parts that hold no page may be uncommitted and
        fault: index it only with ids that are held.
    rows : (nr_pages, 4096) uint8
        The same, one row per 4 KiB page; a page of a higher order spans the rows after its own.
    page_bytes : int
        Bytes of one page of this pool, ``4096 << order``.

    Notes
    -----
    Making one costs a few microseconds and touches no memory. Make one per queue.

    Context: any thread.
    """

    __slots__ = ("_memory", "_window", "flat", "page_bytes", "rows")

    flat: U8Array
    rows: U8Array
    page_bytes: int

    def __init__(self, pool: FramePool) -> None:
        self.flat = np.asarray(_ArenaBytes(pool.arena))
        self.rows = self.flat.reshape(-1, PAGE_SIZE)
        self._memory = pool.memory
        self._window: U8Array = np.empty(0, np.uint8)  # opened by the first view that leaves this room
        self.page_bytes = PAGE_SIZE << int(pool.params.order)

    def frame(self, page_id: int, offset: int, length: int) -> U8Array:
        """Return a writable view, ``(length,) uint8``, of part of a page that the caller holds.

        Notes
        -----
        The view may outlive the page's use: it is a slice of a window of the page allocator, which keeps the
        slabs under it from being given back to the system. Where the allocator's memory has a hole below the
        page (after a
        ``shrink``), no window reaches it and the view keeps the address space only.
        """
        start = (page_id << 12) + offset
        end = start + length
        if end > self._window.size:
            window = np.frombuffer(self._memory.view(), np.uint8)
            self._window = window
            if end > window.size:
                return self.flat[start:end]
        return self._window[start:end]

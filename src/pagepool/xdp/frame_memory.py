# SPDX-License-Identifier: MIT
"""A pool's memory as two NumPy arrays over the whole arena, through which frames are read and written.

Not an allocator and not an owner: it says nothing about who holds a page. Invariant: the arrays, and every
view made from them, keep the arena (and so its mapping) alive; a view that outlives its frame reads recycled
bytes, never unmapped ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pagepool._core.params import PAGE_SIZE, PPFlag
from pagepool._core.tensor import CPU_DEVICE, capsule
from pagepool.xdp._gather import PageWindow
from pagepool.xdp.driver import FramePool, U8Array, U64Array

__all__ = ["FrameMemory"]

_NR_DTYPES = 64


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
            "data": (self.arena.base_vaddr, bool(getattr(self.arena, "is_read_only", False))),
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
        Read-only where the memory is another process's and was lent for reading. Byte ``(page_id << 12) + k`` is byte
        ``k`` of the page. Parts that hold no page may be uncommitted and fault: index it only with ids that are held.
    rows : (nr_pages, 4096) uint8
        The same, one row per 4 KiB page; a page of a higher order spans the rows after its own.
    page_bytes : int
        Bytes of one page of this pool, ``4096 << order``.
    pages : PageWindow
        The same bytes, to gather columns from.
    cpu_access : callable or None
        What the pool's device wants to be told of the CPU's looks by, if it is one that judges them.

    Notes
    -----
    Making one costs a few microseconds and touches no memory. Make one per queue.

    Context: any thread.
    """

    __slots__ = ("_dtypes", "_memory", "_pool", "_window", "cpu_access", "flat", "page_bytes", "pages", "rows")

    flat: U8Array
    rows: U8Array
    page_bytes: int
    pages: PageWindow
    cpu_access: Callable[[int, int], None] | None

    def __init__(self, pool: FramePool) -> None:
        self.flat = np.asarray(_ArenaBytes(pool.arena))
        self.rows = self.flat.reshape(-1, PAGE_SIZE)
        self.pages = PageWindow(self.flat)
        self._dtypes: dict[Any, np.dtype[Any]] = {}
        self._memory = pool.memory
        self._pool = pool
        self.cpu_access = _who_judges(pool)
        self._window: U8Array = np.empty(0, np.uint8)  # opened by the first view that leaves this room
        self.page_bytes = PAGE_SIZE << int(pool.params.order)

    # As a tensor: the rows that have memory behind them, so that no index can fault.

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """Export the pool's memory as a DLPack capsule, ``(pages, 4096) uint8``; row ``id`` is page ``id``.

        To gather by a batch's ``ids`` with one call of the consumer's. It shows all pages, whoever holds them, and what
        each is used for at the moment; nothing is held but the slabs, which cannot be given back meanwhile. It ends
        before the first hole and at what was committed when it was made: an id beyond is an error of the index.
        """
        return capsule(self._rows_now(), stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU, ``(1, 0)``."""
        return CPU_DEVICE

    def _rows_now(self) -> U8Array:
        return np.frombuffer(self._memory.view(), np.uint8).reshape(-1, PAGE_SIZE)

    def dtype(self, spec: Any) -> np.dtype[Any]:
        """Return ``np.dtype(spec)``; a name is remembered: without a GIL, threads that have NumPy read one are slow."""
        found: np.dtype[Any] | None = self._dtypes.get(spec) if type(spec) is str else None
        if found is None:
            found = np.dtype(spec)
            if type(spec) is str and len(self._dtypes) < _NR_DTYPES:
                self._dtypes[spec] = found
        return found

    def frame(self, page_id: int, offset: int, length: int) -> U8Array:
        """Return a writable view, ``(length,) uint8``, of part of a page that the caller holds.

        Notes
        -----
        The view may outlive the page's use: it is a slice of a window of the page allocator, which keeps the
        slabs under it from being given back to the system. Where the allocator's memory has a hole below the
        page (after a
        ``shrink``), no window reaches it and the view keeps the address space only.
        """
        if self.cpu_access is not None:
            dma_addr: U64Array = np.empty(1, np.uint64)
            self._pool.dma_addrs(np.array([page_id], np.uint32), dma_addr)
            self.cpu_access(int(dma_addr[0]) + offset, length)
        start = (page_id << 12) + offset
        end = start + length
        if end > self._window.size:
            window = np.frombuffer(self._memory.view(), np.uint8)
            self._window = window
            if end > window.size:
                return self.flat[start:end]
        return self._window[start:end]


def _who_judges(pool: FramePool) -> Callable[[int, int], None] | None:
    """Return how the pool's device is told of the CPU's looks, if pages are mapped for one that wants to know."""
    params: Any = pool.params
    is_mapped = PPFlag.DMA_MAP in getattr(params, "flags", PPFlag(0))
    return getattr(params.dev, "cpu_access", None) if is_mapped else None

# SPDX-License-Identifier: MIT
"""Which memory may be shown to other processes: whole, of one kind, and with nothing of anybody else's in it.

Looks only; sealing is `PageAllocator.freeze`. Invariant: pools that pass `check_shareable` are all that ever were over
one memory file, and clear every page that comes in.
"""

from __future__ import annotations

import os
from typing import Any

from pagepool._core.page_pool import PagePool
from pagepool._core.params import PAGE_SIZE, SLAB_SIZE
from pagepool.errors import PoolClosedError
from pagepool.memory import MemoryKind, PageAllocator

__all__ = ["check_shareable", "inode_of", "make_shareable"]


def make_shareable(pages: int) -> PagePool:
    """Make a pool over a memory file of its own; the caller closes both, ``pool.memory`` last.

    Parameters
    ----------
    pages : int
        At least so many of 4 KiB, rounded up to 2 MiB.
    """
    if pages < 1:
        raise ValueError(f"pages {pages}: at least 1")
    size_bytes = -(-pages * PAGE_SIZE // SLAB_SIZE) * SLAB_SIZE
    ring = 1 << (size_bytes // PAGE_SIZE - 1).bit_length()
    return PagePool(memory=PageAllocator(size_bytes, MemoryKind.MEMFD, commit=True), zero=True, pool_size=ring)


def check_shareable(pools: tuple[Any, ...]) -> None:
    """Raise where the memory of these pools must not be shown to others.

    Raises
    ------
    ValueError
        It is private, not cleared, of several arenas or orders, or other pools were made over it.
    PoolClosedError
        One of them is closed.
    """
    if not pools:
        raise ValueError("no pools to share")
    arena = pools[0].arena
    for pool in pools:
        if pool.arena is not arena:
            raise ValueError(
                f"{pool!r} is over another arena than {pools[0]!r}; share each with a SharedPool of its own"
            )
        if pool.closed:
            raise PoolClosedError(f"{pool!r} is closed")
        if pool.params.order != pools[0].params.order:
            raise ValueError(f"{pool!r} has pages of another order than {pools[0]!r}")
        if not pool.params.zero:
            raise ValueError(f"{pool!r} does not clear pages that come in; make it with zero=True")
    if not isinstance(pools[0].memory, PageAllocator):
        raise ValueError(f"{pools[0].memory!r} is no PageAllocator")
    if pools[0].memory.fd is None:
        raise ValueError(f"{pools[0].memory!r} is private to this process; make the pool with memory of kind 'memfd'")
    if arena.pools_made != len(pools):
        raise ValueError(
            f"{arena.pools_made} pools were made over this memory and {len(pools)} are shared: data of others may lie "
            "in it; use a PageAllocator of its own"
        )


def inode_of(allocator: PageAllocator) -> int:
    """Return the inode of a memory file, by which it is known from another."""
    fd = allocator.dup_fd(writable=False)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)

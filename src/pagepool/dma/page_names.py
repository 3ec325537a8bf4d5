# SPDX-License-Identifier: MIT
"""Which page of which pool lies at a vaddr: for reports, never for a decision about a page.

It asks the list of pools, and knows bounce buffers: memory that stands for a page somewhere else.
"""

from __future__ import annotations

import threading
from typing import Any

from pagepool._core import registry
from pagepool._core.params import PAGE_SHIFT
from pagepool.dma.layer import unwrap

__all__ = ["arena_at", "forget_stand_in", "note_stand_in", "object_pages", "pools_of"]

_lock = threading.RLock()  # a page may die in here
_stand_ins: dict[int, tuple[int, int]] = {}  # vaddr of the stand-in -> (its length in bytes, vaddr of the pages)


def note_stand_in(stand_in_vaddr: int, size_bytes: int, vaddr: int) -> None:
    """Say that memory stands for other memory, as a bounce buffer does."""
    with _lock:
        _stand_ins[stand_in_vaddr] = (size_bytes, vaddr)


def forget_stand_in(stand_in_vaddr: int) -> None:
    """Undo `note_stand_in`."""
    with _lock:
        _stand_ins.pop(stand_in_vaddr, None)


def arena_at(vaddr: int) -> tuple[Any, int] | None:
    """Return the arena that holds `vaddr`, and its page id there, if a pool is made on it."""
    with _lock:
        _, stands_for = _stand_ins.get(vaddr, (0, vaddr))
    for pool in registry.pools():
        arena = pool.arena
        if arena.base_vaddr <= stands_for < arena.base_vaddr + arena.size_bytes:
            return arena, (stands_for - arena.base_vaddr) >> PAGE_SHIFT
    return None


def pools_of(device: object, arena: Any) -> list[Any]:
    """Return the pools on an arena that map for a device, whatever layers are in front of it."""
    return [
        pool
        for pool in registry.pools()
        if pool.arena is arena and pool.params.dev is not None and unwrap(pool.params.dev) is device
    ]


def object_pages(device: object, arena: Any) -> int:
    """Return how many 4 KiB pages an object has that a pool on `arena` gives to `device`.

    The most, where there are several pools; 0 where there is none.
    """
    return max((1 << pool.params.order for pool in pools_of(device, arena)), default=0)

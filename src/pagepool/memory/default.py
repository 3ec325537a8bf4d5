# SPDX-License-Identifier: MIT
"""The process-wide page allocators, one for each kind, made when first asked for."""

from __future__ import annotations

import threading

from pagepool._core.page_pool import set_allocator_factory
from pagepool.memory import fork
from pagepool.memory.kinds import MemoryKind
from pagepool.memory.page_allocator import PageAllocator


class _Defaults:
    """The allocators so far; a forked child begins with none, so that it shares no pages with its parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._allocators: dict[MemoryKind, PageAllocator] = {}

    def get(self, kind: MemoryKind) -> PageAllocator:
        with self._lock:
            fork.watch(self)
            allocator = self._allocators.get(kind)
            if allocator is None or allocator.closed:
                allocator = self._allocators[kind] = PageAllocator(kind=kind)
            return allocator

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        # Dropped, not closed: pools that came over the fork may still hold them.
        self._allocators = {}


_defaults = _Defaults()


def default_allocator(kind: MemoryKind | str = MemoryKind.ANONYMOUS) -> PageAllocator:
    """Return the process-wide page allocator of a kind; every pool that names no other shares it.

    Parameters
    ----------
    kind : MemoryKind or str
        What its slabs are made of, as far as it can be had (`PageAllocator.describe` says what it is).

    Notes
    -----
    Up to 64 GiB, grown by 2 MiB at a time and shrunk only by `PageAllocator.shrink`. It lives as long as the
    process; one that was closed is replaced by a new one.

    Context: any thread.
    """
    return _defaults.get(MemoryKind(kind))


def allocator_for(memory: MemoryKind | str | None) -> PageAllocator:
    """Return the allocator that a pool's ``memory=`` means: a kind by name, or ``None`` for anonymous memory."""
    return default_allocator(MemoryKind.ANONYMOUS if memory is None else memory)


# The pool may not import this room, so this room says what a name means.
set_allocator_factory(allocator_for)

# SPDX-License-Identifier: MIT
"""One owner takes pages, other threads give them back: the ring, beside a `queue.SimpleQueue`.

The clock runs while the owner takes a pile for every thread, and again from the moment the threads are let go
to the moment the last of them is done: nanoseconds of wall time per page, there and back. With one GIL the
threads take turns; without, they meet at the ring's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any

from benchmarks.case import Case, python_loop
from benchmarks.setting import Setting
from pagepool import PagePool

__all__ = ["cases"]

_PAGES = 8192  # of each thread: its wake-up must not show
_BULK = 64

_Pile = tuple[Callable[[Any], object] | None, list[Any]]


class _Threads:
    """One thread a CPU, let go together, each with its own pile."""

    def __init__(self, cpus: list[int]) -> None:
        self._todo: list[SimpleQueue[_Pile | None]] = [SimpleQueue() for _ in cpus]
        self._done: SimpleQueue[int] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(todo, cpu), daemon=True)
            for todo, cpu in zip(self._todo, cpus, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, take: Callable[[], Any] | None, length: int, give: Callable[[Any], object] | None) -> int:
        """Take a pile for each thread and let them give it back; return the nanoseconds of both."""
        start = perf_counter_ns()
        if take is None:
            piles: list[list[Any]] = [[None for _ in python_loop(length)] for _ in self._threads]
        else:
            piles = [[take() for _ in python_loop(length)] for _ in self._threads]
        for todo, pile in zip(self._todo, piles, strict=True):
            todo.put((give, pile))
        return max(self._done.get() for _ in piles) - start

    def close(self) -> None:
        """End the threads. While one lives it may want the GIL, if only to wait: in somebody else's sample."""
        for todo in self._todo:
            todo.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, todo: SimpleQueue[_Pile | None], cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while (given := todo.get()) is not None:
            give, pile = given
            if give is None:
                while pile:
                    pile.pop()
            else:
                while pile:
                    give(pile.pop())
            self._done.put(perf_counter_ns())


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows for one thread and for two."""
    where = setting.where
    return [*_cases(stack, where.others[:1]), *_cases(stack, [where.others[0], where.cpu])]


def _cases(stack: ExitStack, cpus: list[int]) -> list[Case]:
    nr_threads = len(cpus)
    pool = stack.enter_context(PagePool(pool_size=16384))
    queue: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(nr_threads * _PAGES):
        queue.put(memoryview(b""))
    who = "1 thread" if nr_threads == 1 else f"{nr_threads} threads"
    loop, bulk_loop = f"cross-thread loop, {who}", f"cross-thread loop of {_PAGES // _BULK}, {who}"
    peer = f"SimpleQueue, {who}"

    def case(
        name: str,
        what: str,
        take: Callable[[], Any] | None,
        give: Callable[[Any], object] | None,
        *,
        each: int = 1,
        overhead: str | None = loop,
        against: str | None = peer,
    ) -> Case:
        measure = partial(_measure, cpus, take, _PAGES // each, give)
        return Case(name, measure, what, nr_threads * _PAGES, overhead=overhead, against=against)

    return [
        case(loop, "what the rows have beside their work", None, None, overhead=None, against=None),
        case(bulk_loop, "the same for piles of arrays", None, None, each=_BULK, overhead=None, against=None),
        case(peer, "queue.get(), queue.put(page)", queue.get_nowait, queue.put, against=None),
        case(f"cross put_page, {who}", "pool.put_page(page)", pool.dev_alloc_pages, pool.put_page),
        case(f"cross last reference, {who}", "del page", pool.dev_alloc_pages, None),
        case(
            f"cross put_bulk, {who}",
            f"pool.put_bulk({_BULK} ids)",
            partial(pool.alloc_bulk, _BULK),
            pool.put_bulk,
            each=_BULK,
            overhead=bulk_loop,
        ),
    ]


def _measure(
    cpus: list[int], take: Callable[[], Any] | None, length: int, give: Callable[[Any], object] | None, n: int
) -> int:
    threads = _Threads(cpus)
    try:
        return sum(threads.run(take, length, give) for _ in range(n))
    finally:
        threads.close()

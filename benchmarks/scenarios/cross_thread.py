# SPDX-License-Identifier: MIT
"""One owner allocates, other threads give back: the ring's producer side, beside a `queue.SimpleQueue`.

The owner takes pages for every thread, the threads wait, and the clock runs from the moment they are let go to
the moment the last of them is done: nanoseconds of wall time per page. With one GIL the threads take turns;
without, they meet at the ring's lock. The pool's rows end with the owner taking the pages out of the ring,
off the clock; the queue's with the owner taking them from the queue.
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

import numpy as np

from benchmarks.case import Case
from benchmarks.setting import Setting
from pagepool import PagePool

__all__ = ["cases"]

_PAGES = 4096  # of each thread: its wake-up must not show
_BULK = 64

Work = Callable[[Any], None]


class _Threads:
    """Threads that are let go together, each with its own pile."""

    def __init__(self, count: int, cpus: list[int]) -> None:
        self._todo: list[SimpleQueue[tuple[Work, Any] | None]] = [SimpleQueue() for _ in range(count)]
        self._done: SimpleQueue[int] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(todo, cpus[i % len(cpus)]), daemon=True)
            for i, todo in enumerate(self._todo)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._threads)

    def run(self, work: Work, piles: list[Any]) -> int:
        """Do `work` on one pile each; return the nanoseconds until the last is done."""
        start = perf_counter_ns()
        for todo, pile in zip(self._todo, piles, strict=True):
            todo.put((work, pile))
        return max(self._done.get() for _ in piles) - start

    def close(self) -> None:
        for todo in self._todo:
            todo.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, todo: SimpleQueue[tuple[Work, Any] | None], cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while (given := todo.get()) is not None:
            work, pile = given
            work(pile)
            self._done.put(perf_counter_ns())


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows for one thread and for two."""
    rows = []
    for count in (1, 2):
        threads = _Threads(count, [*setting.where.others, setting.where.cpu])
        stack.callback(threads.close)
        rows += _cases(stack, threads)
    return rows


def _cases(stack: ExitStack, threads: _Threads) -> list[Case]:
    count = len(threads)
    pool = stack.enter_context(PagePool(pool_size=16384))
    who = "1 thread" if count == 1 else f"{count} threads"
    loop, bulk_loop = f"cross-thread loop, {who}", f"cross-thread loop of {_BULK}, {who}"
    peer = f"SimpleQueue, {who}"
    nr_pages = count * _PAGES
    queue: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(count * _PAGES):
        queue.put(memoryview(b""))
    return [
        Case(loop, partial(_loop, threads, _PAGES), "list pops, and the wake-up", nr_pages, overhead=None),
        Case(bulk_loop, partial(_loop, threads, _PAGES // _BULK), "the same", nr_pages, overhead=None),
        Case(peer, partial(_queue, threads, queue), "queue.put(page)", nr_pages, overhead=loop),
        *(
            Case(f"{name}, {who}", partial(_handles, threads, pool, give), what, nr_pages, overhead=loop, against=peer)
            for name, what, give in (
                ("cross put_page", "pool.put_page(page)", pool.put_page),
                ("cross last reference", "del page", None),
            )
        ),
        Case(
            f"cross put_bulk, {who}",
            partial(_bulk, threads, pool),
            f"pool.put_bulk({_BULK} ids)",
            nr_pages,
            overhead=bulk_loop,
            against=peer,
        ),
    ]


def _give_all(give: Callable[[Any], object] | None, pile: list[Any]) -> None:
    if give is None:
        while pile:
            pile.pop()
    else:
        while pile:
            give(pile.pop())


def _loop(threads: _Threads, length: int, n: int) -> int:
    took = 0
    for _ in range(n):
        took += threads.run(partial(_give_all, None), [[None] * length for _ in range(len(threads))])
    return took


def _queue(threads: _Threads, queue: SimpleQueue[memoryview], n: int) -> int:
    took = 0
    for _ in range(n):
        piles = [[queue.get() for _ in range(_PAGES)] for _ in range(len(threads))]
        took += threads.run(partial(_give_all, queue.put), piles)
    return took


def _handles(threads: _Threads, pool: PagePool, give: Callable[[Any], object] | None, n: int) -> int:
    took = 0
    for _ in range(n):
        piles = [[pool.alloc_pages() for _ in range(_PAGES)] for _ in range(len(threads))]
        took += threads.run(partial(_give_all, give), piles)
    return took


def _bulk(threads: _Threads, pool: PagePool, n: int) -> int:
    took = 0
    for _ in range(n):
        piles = []
        for _ in range(len(threads)):
            ids = np.zeros(_PAGES, np.uint32)
            pool.alloc_bulk(ids)
            piles.append(list(ids.reshape(-1, _BULK)))
        took += threads.run(partial(_give_all, pool.put_bulk), piles)
    return took

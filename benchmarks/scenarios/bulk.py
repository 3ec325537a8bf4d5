# SPDX-License-Identifier: MIT
"""Many pages with one call: 1, 8, 64 and 256, compiled and from Python, beside a list.

From Python the ids go into an ``array('I')`` made once, which is how a driver does it; one row makes a new
array each time. Beside them home-made pools: a list from which 64 pages are popped and to which they are
appended again, one by one; the same by slices; and (``baseline``) ``pages.append(pages.pop())`` net of its loop,
which is less than any program pays that holds 64 pages at once.
"""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns

from benchmarks.case import COMPILED_LOOP, Case, compiled, python_loop
from benchmarks.scenarios.baseline import LIST
from benchmarks.setting import Setting
from pagepool import PagePool
from pagepool._core import loops

__all__ = ["BULK_64", "BULK_64_NEW", "LIST_64", "LIST_SLICES", "cases"]

SIZES = (1, 8, 64, 256)
BULK_64 = "bulk 64"
BULK_64_NEW = "bulk 64, new array"
LIST_64 = "list, 64 pops, 64 appends"
LIST_SLICES = "list slices of 64"


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows, compiled ones first."""
    pool = stack.enter_context(PagePool(pool_size=1024))
    pages = [memoryview(bytearray(4096)) for _ in range(128)]
    rows = [
        Case(
            f"compiled bulk {n}",
            compiled(partial(_compiled, pool, n)),
            f"compiled alloc {n} + put {n}, cache",
            pages=n,
            overhead=COMPILED_LOOP,
        )
        for n in SIZES
    ]
    rows += [
        Case(
            f"bulk {n}",
            partial(_bulk, pool, array("I", bytes(4 * n))),
            f"alloc_bulk(ids), put_bulk(ids), {n} ids",
            pages=n,
            against=LIST,
        )
        for n in SIZES
    ]
    return [
        *rows,
        Case(BULK_64_NEW, partial(_bulk_new, pool), "put_bulk(alloc_bulk(64))", pages=64, against=LIST),
        Case(LIST_64, partial(_list, pages), "a home-made pool, page by page", pages=64, against=LIST),
        Case(LIST_SLICES, partial(_slices, pages), "a home-made pool in slices", pages=64, against=LIST),
    ]


def _compiled(pool: PagePool, n: int, rounds: int) -> None:
    loops.bulk(pool, n, rounds, True)


def _bulk(pool: PagePool, ids: array[int], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pool.alloc_bulk(ids)
        pool.put_bulk(ids)
    return perf_counter_ns() - start


def _bulk_new(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pool.put_bulk(pool.alloc_bulk(64))
    return perf_counter_ns() - start


def _slices(pages: list[memoryview], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        taken = pages[-64:]
        del pages[-64:]
        pages.extend(taken)
    return perf_counter_ns() - start


def _list(pages: list[memoryview], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        taken = [pages.pop() for _ in python_loop(64)]
        for page in taken:
            pages.append(page)
    return perf_counter_ns() - start

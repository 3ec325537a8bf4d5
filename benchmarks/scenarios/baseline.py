# SPDX-License-Identifier: MIT
"""Baselines: the loops themselves, an empty call, a list, fresh memory.

Every other row is read against these. The first four are the kernel's (``for_loop``, ``atomic_inc``, ``lock``)
and the thing a page pool exists to avoid.
"""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns

from benchmarks.case import COMPILED_LOOP, PYTHON_LOOP, Case, compiled, python_loop
from benchmarks.setting import Setting
from pagepool._core import loops

__all__ = ["EMPTY_CALLS", "FRESH_PAGE", "LIST", "cases"]

EMPTY_CALLS = "two empty calls"
LIST = "list pop, append"
FRESH_PAGE = "mmap, touch, munmap"


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the baselines, the two empty loops first."""
    pages = [memoryview(bytearray(4096)) for _ in range(64)]
    return [
        Case(COMPILED_LOOP, compiled(loops.for_loop), "empty compiled loop", per="turn", overhead=None),
        Case("atomic_inc", compiled(loops.atomic_inc), "atomic add", per="add", overhead=COMPILED_LOOP),
        Case("lock", compiled(loops.lock), "spin lock and unlock, nobody else", per="pair", overhead=COMPILED_LOOP),
        Case(FRESH_PAGE, compiled(loops.fresh_page), "4 KiB from the kernel, compiled", overhead=COMPILED_LOOP),
        Case(PYTHON_LOOP, _loop, "empty Python loop", per="turn", overhead=None),
        Case(EMPTY_CALLS, partial(_empty_calls, loops.Empty()), "give(take()), compiled and empty", per="pair"),
        Case(LIST, partial(_list, pages), "a home-made pool: pages.append(pages.pop())"),
        Case("bytearray(4096)", _bytearray, "fresh, zeroed, from the C library's allocator"),
        Case("mmap.mmap", _mmap, "mmap.mmap(-1, 4096), one byte, close"),
    ]


def _loop(n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pass
    return perf_counter_ns() - start


def _empty_calls(empty: loops.Empty, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        empty.give(empty.take())  # type: ignore[func-returns-value]
    return perf_counter_ns() - start


def _list(pages: list[memoryview], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pages.append(pages.pop())
    return perf_counter_ns() - start


def _bytearray(n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        bytearray(4096)
    return perf_counter_ns() - start


def _mmap(n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        page = mmap.mmap(-1, 4096)
        page[0] = 1
        page.close()
    return perf_counter_ns() - start

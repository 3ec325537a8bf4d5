# SPDX-License-Identifier: MIT
"""Handles: one `Page` object a page, from Python, beside what a Python user would write instead.

Two ways back: `put_page`, and letting the last reference go. The peers are a list (no owner, no count, no way
back by itself), a list with a lock, a class whose ``__del__`` gives back, and fresh memory.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns

import numpy as np

from benchmarks.case import Case, python_loop
from benchmarks.scenarios.baseline import EMPTY_CALLS, LIST
from benchmarks.setting import Setting
from pagepool import PagePool

__all__ = ["DEL_CLASS", "LAST_REFERENCE", "LIST_TOUCH", "PUT_PAGE", "PUT_PAGE_TOUCH", "cases"]

PUT_PAGE = "put_page"
LAST_REFERENCE = "last reference"
PUT_PAGE_TOUCH = "put_page, touched"
LIST_TOUCH = "list, touched"
DEL_CLASS = "class with __del__"


class _Borrowed:
    """What a careful Python user writes: an object that brings its page back when it dies."""

    __slots__ = ("page", "pages")

    def __init__(self, pages: list[memoryview]) -> None:
        self.pages = pages
        self.page = pages.pop()

    def __del__(self) -> None:
        self.pages.append(self.page)


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the pool's rows, then the peers."""
    pool = stack.enter_context(PagePool(pool_size=1024))
    pages = [memoryview(bytearray(4096)) for _ in range(64)]
    return [
        Case(PUT_PAGE, partial(_put_page, pool), "pool.put_page(pool.dev_alloc_pages())", against=EMPTY_CALLS),
        Case("put_page, named", partial(_put_named, pool), "page = ...; pool.put_page(page)", against=EMPTY_CALLS),
        Case("page.put", partial(_page_put, pool), "pool.dev_alloc_pages().put()", against=EMPTY_CALLS),
        Case(LAST_REFERENCE, partial(_last_reference, pool), "page = ...; del page", against=EMPTY_CALLS),
        Case("with", partial(_with, pool), "with pool.dev_alloc_pages():", against=LIST),
        Case(PUT_PAGE_TOUCH, partial(_put_touched, pool), "... page[0] = 1 ...", against=LIST),
        Case(LIST_TOUCH, partial(_list_touched, pages), "a list: pop, page[0] = 1, append", against=LIST),
        Case("list and lock", partial(_list_lock, pages), "pop and append, each under a threading.Lock", against=LIST),
        Case(DEL_CLASS, partial(_del_class, pages), "an object that appends when it dies", against=LIST),
        Case("numpy.empty", _numpy, "np.empty(4096, np.uint8)", against=LIST),
    ]


def _put_page(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pool.put_page(pool.dev_alloc_pages())  # type: ignore[arg-type]
    return perf_counter_ns() - start


def _put_named(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        page = pool.dev_alloc_pages()
        pool.put_page(page)  # type: ignore[arg-type]
    return perf_counter_ns() - start


def _page_put(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        pool.dev_alloc_pages().put()  # type: ignore[union-attr]
    return perf_counter_ns() - start


def _last_reference(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        page = pool.dev_alloc_pages()
        del page
    return perf_counter_ns() - start


def _with(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        with pool.dev_alloc_pages():  # type: ignore[union-attr]
            pass
    return perf_counter_ns() - start


def _put_touched(pool: PagePool, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        page = pool.dev_alloc_pages()
        page[0] = 1  # type: ignore[index]
        pool.put_page(page)  # type: ignore[arg-type]
    return perf_counter_ns() - start


def _list_touched(pages: list[memoryview], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        page = pages.pop()
        page[0] = 1
        pages.append(page)
    return perf_counter_ns() - start


def _list_lock(pages: list[memoryview], n: int) -> int:
    lock = threading.Lock()
    start = perf_counter_ns()
    for _ in python_loop(n):
        with lock:
            page = pages.pop()
        with lock:
            pages.append(page)
    return perf_counter_ns() - start


def _del_class(pages: list[memoryview], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        _Borrowed(pages)
    return perf_counter_ns() - start


def _numpy(n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        np.empty(4096, np.uint8)
    return perf_counter_ns() - start

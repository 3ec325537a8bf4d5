# SPDX-License-Identifier: MIT
"""The pool that each thread has for itself."""

from __future__ import annotations

import threading

import pagepool as pp


def test_each_thread_has_its_own() -> None:
    found: list[pp.PagePool] = []

    def look() -> None:
        pool = pp.system_pool()
        with pool.alloc_pages() as page:
            page[0] = 1
        found.append(pool)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    mine = pp.system_pool()
    assert mine is pp.system_pool()
    assert found[0] is not mine
    assert found[0].lent == 0


def test_a_page_outlives_the_thread_whose_pool_it_came_from() -> None:
    pages: list[pp.Page] = []

    def take() -> None:
        pages.append(pp.system_pool().alloc_pages())

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    page = pages.pop()
    page[0] = 7
    assert page[0] == 7
    pool = page.pool
    page.put()
    assert pool.lent == 0
    pool.check()

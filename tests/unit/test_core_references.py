# SPDX-License-Identifier: MIT
"""Who holds a page: handles, views, foreign references; and what a handle says once it does not."""

from __future__ import annotations

import copy
import gc
import pickle
import socket
import sys
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from core_doubles import ids_of, memory, used_pages

from pagepool import Page, PagePool
from pagepool.errors import (
    DeadPageError,
    DoublePutError,
    ForeignPageError,
    PageLeakError,
    PagePoolError,
)


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


# -- handles -------------------------------------------------------------------------------------------------


def test_a_handle_that_dies_is_a_put(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page_id = page.id
    del page
    assert (pool.lent, pool.stats().cached) == (0, 1)
    assert pool.alloc_pages().id == page_id


def test_a_buffer_that_was_refused_keeps_nothing(pool: PagePool) -> None:
    page = pool.alloc_pages()
    reader = page.toreadonly()
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        with pytest.raises(TypeError, match="read-write"):
            near.recv_into(reader)
    assert page.refcount == 2
    reader.put()
    page.put()
    assert pool.lent == 0


class PutsIt(int):
    """A number that puts a page when it is looked at."""

    page: Page

    def look(self, *_: object) -> bool:
        if self.page.is_live:
            self.page.put()
        return True

    __ge__ = __le__ = __gt__ = __lt__ = look

    def __index__(self) -> int:
        self.look()
        return 99


class IndexPutsIt:
    """As `PutsIt`, where a number is asked for only."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def __index__(self) -> int:
        self.page.put()
        return 99


def test_a_value_that_puts_the_page_is_not_written_to_it(pool: PagePool) -> None:
    for make in (PutsIt, IndexPutsIt):
        page = pool.alloc_pages()
        page[0] = 1
        value: Any = make(99) if make is PutsIt else make(page)
        value.page = page
        with suppress(DeadPageError):
            page[0] = value
        fresh = page if page.is_live else pool.alloc_pages()
        assert fresh[0] == (99 if fresh is page else 1)
        fresh.put()
        assert pool.lent == 0


def test_with_puts_once(pool: PagePool) -> None:
    with pool.alloc_pages() as page:
        page[0] = 1
    assert pool.lent == 0
    with pool.alloc_pages() as page:
        page.put()
    with pytest.raises(DeadPageError), page:
        pass
    assert pool.lent == 0


def test_a_dead_handle_says_so_and_reaches_nothing(pool: PagePool) -> None:
    dead = pool.alloc_pages()
    dead.put()
    alive = pool.alloc_pages()
    assert alive.id == dead.id
    alive[0] = 77
    uses: list[Any] = [
        lambda: dead[0],
        lambda: dead[0:4],
        lambda: memoryview(dead),
        lambda: dead.vaddr,
        lambda: dead.refcount,
        lambda: pool.get_page(dead),
        lambda: pool.release_page(dead),
        lambda: dead.__setitem__(0, 1),
        lambda: np.asarray(dead),
    ]
    for use in uses:
        with pytest.raises((DeadPageError, BufferError), match=r"put|dead|array"):
            use()
    for put in (pool.put_page, pool.put_full_page, pool.recycle_direct):
        with pytest.raises(DoublePutError, match=f"page {dead.id} was put already"):
            put(dead)
    assert repr(dead) == f"<Page {dead.id}: dead>"
    assert not dead.is_live
    assert alive.is_live
    assert (alive[0], pool.lent) == (77, 1)
    pool.check()


def test_a_double_put_names_the_first(pool: PagePool) -> None:
    tracked = PagePool(memory=memory(), track=True)
    page = tracked.alloc_pages()
    tracked.put_page(page)
    with pytest.raises(DoublePutError, match=r"was put at .*test_core_references.py:\d+ in test_a_double_put_names"):
        tracked.put_page(page)
    (page_id,) = tracked.alloc_bulk(1)
    page = tracked.page(page_id)
    tracked.put_bulk(ids_of([page_id]))
    with pytest.raises(DeadPageError, match=r"was put at .*test_core_references.py"):
        page[0]


def test_a_page_of_another_pool_is_refused_and_stays_lent(pool: PagePool) -> None:
    other = PagePool(memory=memory())
    page = pool.alloc_pages()
    for door in (other.put_page, other.recycle_direct, other.release_page, other.get_page, other.put_full_page):
        with pytest.raises(ForeignPageError, match=f"page {page.id}|Page {page.id}"):
            door(page)
    sibling = PagePool(memory=pool.memory)
    with pytest.raises(ForeignPageError):
        sibling.put_page(page)
    assert sibling.put_bulk(ids_of([page.id])) == 0
    assert page.is_live
    assert (pool.lent, other.lent) == (1, 0)


@pytest.mark.parametrize("thing", [None, 5, b"", object()])
def test_what_is_no_page_is_a_type_error(pool: PagePool, thing: Any) -> None:
    for door in (pool.put_page, pool.recycle_direct, pool.put_full_page):
        with pytest.raises(TypeError):
            door(thing)
    for door in (pool.release_page, pool.get_page):
        with pytest.raises((TypeError, ForeignPageError)):
            door(thing)


def test_handles_are_not_made_copied_or_pickled(pool: PagePool) -> None:
    page = pool.alloc_pages()
    with pytest.raises(TypeError, match="alloc_pages"):
        Page()
    with pytest.raises(TypeError, match=r"alloc_pages|safe"):
        Page.__new__(Page)
    with pytest.raises(TypeError):
        object.__new__(Page)
    for do in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pickled"):
            do(page)
    with pytest.raises(TypeError):
        type("Sub", (Page,), {})
    for thing in (pool, pool.arena, pool.ring):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)


def test_handles_outnumber_what_a_pool_keeps(pool: PagePool) -> None:
    pages = [pool.alloc_pages() for _ in range(1000)]
    assert len({page.id for page in pages}) == 1000
    del pages
    assert pool.lent == 0
    pages = [pool.alloc_pages() for _ in range(1000)]
    assert len({id(page) for page in pages}) == 1000
    pool.check()


def test_bytes_of_a_page(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page[0:4] = b"abcd"
    page[-1] = 255
    assert (page[0], page[3], page[-1], bytes(page[0:4])) == (97, 100, 255, b"abcd")
    assert len(page) == 4096
    for wrong in (4096, -4097, 1 << 70):
        with pytest.raises((IndexError, OverflowError)):
            page[wrong]
        with pytest.raises((IndexError, OverflowError)):
            page[wrong] = 0
    for value in (-1, 256):
        with pytest.raises(ValueError, match="no byte"):
            page[0] = value
    with pytest.raises(TypeError):
        del page[0]
    with pytest.raises(TypeError):
        page["0"]  # type: ignore[call-overload]
    assert pool.lent == 1


# -- views ---------------------------------------------------------------------------------------------------


def test_a_view_keeps_the_page_lent_and_takes_it_home(pool: PagePool) -> None:
    page = pool.alloc_pages()
    view = memoryview(page)
    part = view[10:20]
    assert page.refcount == 2
    assert (view.nbytes, view.format, view.readonly, view.contiguous) == (4096, "B", False, True)
    pool.put_page(page)
    assert pool.lent == 1
    other = pool.alloc_pages()
    assert other.id != page.id
    part[0] = 9
    view.release()
    assert pool.lent == 2
    part.release()
    assert pool.lent == 1
    pool.check()


def test_a_second_put_does_not_pull_the_page_from_under_a_view(pool: PagePool) -> None:
    page = pool.alloc_pages()
    view = memoryview(page)
    pool.put_page(page)
    for put in (pool.put_page, pool.recycle_direct):
        with pytest.raises(DoublePutError):
            put(page)
    assert pool.put_bulk(ids_of([page.id])) == 0
    del page
    assert pool.lent == 1
    view[0] = 1
    view.release()
    assert pool.lent == 0
    pool.check()


def test_a_bulk_put_is_the_handles_put_and_views_stay(pool: PagePool) -> None:
    page = pool.alloc_pages()
    view = memoryview(page)
    ids = ids_of([page.id, page.id])
    assert pool.put_bulk(ids) == 1
    assert not page.is_live
    with pytest.raises(DoublePutError):
        page.put()
    del page
    assert pool.lent == 1
    view.release()
    assert pool.lent == 0
    pool.check()


def test_dropping_everything_is_a_put(pool: PagePool) -> None:
    page = pool.alloc_pages()
    view = memoryview(page)[5:]
    del page
    assert pool.lent == 1
    del view
    assert pool.lent == 0


def test_numpy_reads_and_writes_the_page_itself(pool: PagePool) -> None:
    page = pool.alloc_pages()
    array = np.asarray(page)
    words = array.view(np.uint32)
    words[:] = 0x01020304
    assert bytes(page[0:4]) == b"\x04\x03\x02\x01"
    assert array.ctypes.data == page.vaddr
    page.put()
    assert pool.lent == 1
    del array, words
    assert pool.lent == 0


def test_a_socket_receives_into_a_page(pool: PagePool) -> None:
    left, right = socket.socketpair()
    with left, right, pool.alloc_pages() as page:
        left.sendall(b"hello page")
        assert right.recv_into(page) == 10
        assert bytes(page[:10]) == b"hello page"
        assert left.send(page[:5]) == 5
        assert right.recv(10) == b"hello"
        assert page.refcount == 1
    assert pool.lent == 0


def test_a_view_in_a_cycle_goes_home_with_the_collector(pool: PagePool) -> None:
    holder: list[Any] = [memoryview(pool.alloc_pages())]
    holder.append(holder)
    del holder
    gc.collect()
    assert pool.lent == 0


def test_many_views_of_one_page(pool: PagePool) -> None:
    page = pool.alloc_pages()
    views = [memoryview(page) for _ in range(1000)]
    assert page.refcount == 1001
    page.put()
    del views
    assert pool.lent == 0


# -- foreign references --------------------------------------------------------------------------------------


def test_a_page_with_a_foreign_reference_is_not_recycled(pool: PagePool) -> None:
    page = pool.alloc_pages()
    keep = pool.get_page(page)
    assert (keep.id, page.refcount) == (page.id, 2)
    pool.put_page(page)
    stats = pool.stats()
    assert (stats.released_refcnt, stats.left_refcnt, pool.lent, pool.inflight) == (1, 1, 0, 63)
    keep[0] = 3
    assert keep.refcount == 1
    assert used_pages(pool) == 64
    keep.put()
    assert used_pages(pool) == 63
    with pytest.raises(DoublePutError):
        keep.put()
    pool.check()


def test_a_foreign_reference_that_goes_first_changes_nothing(pool: PagePool) -> None:
    page = pool.alloc_pages()
    pool.get_page(page).put()
    keep = pool.get_page(page)
    del keep
    pool.put_page(page)
    assert (pool.stats().cached, pool.stats().released_refcnt) == (1, 0)


def test_foreign_references_of_foreign_references_and_their_views(pool: PagePool) -> None:
    page = pool.alloc_pages()
    first = pool.get_page(page)
    second = pool.get_page(first)
    view = memoryview(second)
    page.put()
    first.put()
    second.put()
    assert used_pages(pool) == 64
    view[0] = 1
    view.release()
    assert used_pages(pool) == 63
    pool.close()
    assert used_pages(pool) == 0


def test_references_are_bounded_not_wrapped(pool: PagePool) -> None:
    page = pool.alloc_pages()
    keep = [pool.get_page(page) for _ in range(0xFFFE)]
    with pytest.raises(BufferError, match="too many"):
        pool.get_page(page)
    with pytest.raises(BufferError, match="too many"):
        memoryview(keep[0])
    assert page.refcount == 0xFFFF
    del keep
    page.put()
    assert (pool.lent, pool.stats().cached) == (0, 1)


def test_release_page_leaves_the_pool_with_the_memory(pool: PagePool) -> None:
    page = pool.alloc_pages()
    page[0] = 42
    pool.release_page(page)
    assert (pool.lent, pool.inflight, pool.stats().left_detached) == (0, 63, 1)
    assert (page[0], page.is_live, page.refcount) == (42, True, 1)
    assert pool.put_bulk(ids_of([page.id])) == 0
    with pytest.raises(PagePoolError):
        pool.release_page(page)
    assert used_pages(pool) == 64
    page.put()
    assert used_pages(pool) == 63
    with pytest.raises(DoublePutError):
        page.put()
    pool.check()


def test_release_page_takes_its_own_views_along_and_no_others(pool: PagePool) -> None:
    page = pool.alloc_pages()
    view = memoryview(page)
    pool.release_page(page)
    page.put()
    assert used_pages(pool) == 64
    view[0] = 1
    view.release()
    assert used_pages(pool) == 63
    fragment = pool.alloc_frag(64)
    assert fragment is not None
    with pytest.raises(PagePoolError, match="other references"):
        pool.release_page(fragment)
    assert fragment.is_live


def test_released_pages_outlive_the_pool() -> None:
    pool = PagePool(memory=memory())
    page = pool.alloc_pages()
    arena = pool.arena
    pool.release_page(page)
    pool.close()
    gone = weakref.ref(pool)
    del pool
    page[:5] = b"still"
    assert bytes(page[:5]) == b"still"
    assert arena.nr_added_pages - arena.nr_free_pages == 1
    del page
    gc.collect()
    assert gone() is None
    assert arena.nr_added_pages == arena.nr_free_pages


# -- strict --------------------------------------------------------------------------------------------------


def test_a_strict_pool_reports_a_handle_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(args.exc_value))
    pool = PagePool(memory=memory(), strict=True)
    page = pool.alloc_pages()
    page_id = page.id
    del page
    (error,) = heard
    assert isinstance(error, PageLeakError)
    assert f"page {page_id} of" in str(error)
    assert (pool.lent, pool.stats().cached) == (0, 1)
    pool.alloc_pages().put()
    foreign = pool.get_page(page := pool.alloc_pages())
    page.put()
    del foreign
    pool.release_page(page := pool.alloc_pages())
    del page
    assert len(heard) == 1


def test_an_exception_on_its_way_survives_a_dying_handle() -> None:
    pool = PagePool(memory=memory(), strict=False, track=True)

    def fail() -> None:
        page = pool.alloc_pages()
        raise LookupError(page.id)

    with pytest.raises(LookupError):
        fail()
    assert pool.lent == 0

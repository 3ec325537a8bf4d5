# SPDX-License-Identifier: MIT
"""Where a page comes from and goes to: cache, ring, page allocator."""

from __future__ import annotations

import gc

import pytest
from core_doubles import ids_of, memory, used_pages

from pagepool import PagePool
from pagepool._core.params import PP_ALLOC_CACHE_REFILL, PP_ALLOC_CACHE_SIZE
from pagepool.errors import PoolClosedError


def ringed_pool(count: int, **fields: object) -> tuple[PagePool, list[int]]:
    """A pool whose cache is empty and whose ring holds `count` pages; their ids, oldest first."""
    pool = PagePool(memory=memory(), **fields)  # type: ignore[arg-type]
    ids = pool.alloc_bulk((count + 63) // 64 * 64)
    pool.direct_recycling = False
    assert pool.put_bulk(ids[:count]) == count
    return pool, list(ids[:count])


def test_the_cache_is_lifo() -> None:
    pool = PagePool(memory=memory())
    pages = [pool.alloc_pages() for _ in range(5)]
    ids = [page.id for page in pages]
    for page in pages:
        pool.put_page(page)
    again = [pool.alloc_pages() for _ in range(5)]
    assert [page.id for page in again] == ids[::-1]
    for page in again:
        pool.recycle_direct(page)
    assert list(pool.alloc_bulk(5)) == ids


def test_a_bulk_leaves_the_cache_newest_first() -> None:
    pool = PagePool(memory=memory())
    ids = pool.alloc_bulk(64)
    pool.put_bulk(ids)
    assert list(pool.alloc_bulk(64)) == list(ids)[::-1]


def test_the_ring_is_fifo_and_refills_half_the_cache() -> None:
    pool, ids = ringed_pool(192)
    assert pool.stats().in_ring == 192
    first = pool.alloc_pages()
    assert first.id == ids[63]  # the last one pulled is handed out
    assert pool.stats().in_cache == PP_ALLOC_CACHE_REFILL - 1
    assert list(pool.alloc_bulk(63)) == ids[:63][::-1]
    assert sorted(pool.alloc_bulk(64)) == sorted(ids[64:128])
    assert pool.stats().refill == 2


def test_the_cache_takes_128_then_the_ring_then_the_page_allocator() -> None:
    pool = PagePool(memory=memory(), pool_size=10)
    pages = [pool.alloc_pages() for _ in range(PP_ALLOC_CACHE_SIZE + 10 + 7)]
    for page in pages:
        page.put()
    stats = pool.stats()
    # 145 of the 192 that came in were out: the cache had 47 and took 81, the ring 10, the rest left
    assert (stats.in_cache, stats.in_ring, stats.left_ring_full) == (PP_ALLOC_CACHE_SIZE, 10, 54)
    assert (stats.cache_full, stats.ring, stats.ring_full) == (64, 10, 54)
    pool.check()


def test_the_slow_path_takes_64_at_a_time() -> None:
    pool = PagePool(memory=memory())
    calls = pool.arena.alloc_calls
    pool.alloc_bulk(640)
    assert pool.arena.alloc_calls - calls == 10
    assert (pool.stats().slow, pool.inflight) == (10, 640)


def test_high_orders_come_one_by_one_and_leave_the_cache_alone() -> None:
    pool = PagePool(memory=memory(), order=3)
    calls = pool.arena.alloc_calls
    pages = [pool.alloc_pages() for _ in range(5)]
    assert pool.arena.alloc_calls - calls == 5
    stats = pool.stats()
    assert (stats.slow_high_order, stats.slow, stats.in_cache, pool.inflight) == (5, 0, 0, 5)
    pages.pop().put()
    assert pool.stats().in_cache == 1


def test_plain_puts_of_the_owner_take_the_cache_unless_told_otherwise() -> None:
    pool = PagePool(memory=memory())
    page = pool.alloc_pages()
    page.put()
    assert (pool.stats().cached, pool.stats().ring) == (1, 0)
    pool.direct_recycling = False
    pool.alloc_pages().put()
    assert (pool.stats().cached, pool.stats().ring) == (1, 1)
    pool.recycle_direct(pool.alloc_pages())  # the caller's promise goes over the setting
    assert (pool.stats().cached, pool.stats().ring) == (2, 1)
    page = pool.alloc_pages()
    del page
    assert pool.stats().ring == 2


# -- limits --------------------------------------------------------------------------------------------------


def test_at_the_limit_there_is_none_and_the_error_names_who_holds() -> None:
    pool = PagePool(memory=memory(), limit=3, track=True)
    pages = [pool.alloc_pages() for _ in range(3)]
    assert pool.dev_alloc_pages() is None
    with pytest.raises(MemoryError, match=r"at its limit of 3 pages: 3 allocated at .*test_core_tiers.py:\d+ in "):
        pool.alloc_pages()
    assert list(pool.alloc_bulk(2)) == []
    assert pool.stats().limit_hits == 3
    pages.pop().put()
    assert pool.alloc_pages() is not None
    assert pool.inflight == 3


def test_a_limit_counts_idle_pages_too_and_cuts_the_bulk() -> None:
    pool = PagePool(memory=memory(), limit=70)
    ids = pool.alloc_bulk(200)
    assert len(ids) == pool.inflight == 70
    pool.put_bulk(ids)
    assert len(pool.alloc_bulk(200)) == 70


def test_a_page_allocator_at_its_end_gives_none_and_recovers() -> None:
    pool = PagePool(memory=memory(1))
    ids = pool.alloc_bulk(600)
    assert len(ids) == 512
    assert pool.dev_alloc_pages() is None
    with pytest.raises(MemoryError, match="no block of order 0"):
        pool.alloc_pages()
    pool.put_bulk(ids[:1])
    assert pool.alloc_pages().id == ids[0]
    pool.check()


# -- what is in a page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1])
def test_zero_clears_a_page_that_enters_and_never_on_recycle(order: int) -> None:
    allocator = memory(1)
    dirty = PagePool(memory=allocator, order=order)
    objects = 512 >> order
    pages = [dirty.alloc_pages() for _ in range(objects)]
    for page in pages:
        page[:] = b"\xaa" * len(page)
    del page
    pages.clear()
    dirty.close()
    assert used_pages(dirty) == 0
    pool = PagePool(memory=allocator, order=order, zero=True)
    pages = [pool.alloc_pages() for _ in range(objects)]
    assert all(bytes(page) == bytes(len(page)) for page in pages)
    pages[0][:4] = b"mine"
    last = pages[0]
    pool.put_page(last)
    assert bytes(pool.alloc_pages()[:4]) == b"mine"


def test_pages_of_the_emergency_reserve_are_never_recycled() -> None:
    allocator = memory(1)
    allocator.arena.reserve_pages = 4
    pool = PagePool(memory=allocator)
    ids = pool.alloc_bulk(508)
    assert len(ids) == 508
    emergency = pool.alloc_pages()
    assert pool.arena.nr_free_pages == 3
    emergency.put()
    stats = pool.stats()
    assert (stats.released_refcnt, stats.left_refcnt, stats.in_cache) == (1, 1, 0)
    assert pool.arena.nr_free_pages == 4
    last = pool.alloc_bulk(4)
    assert len(last) == 4
    assert pool.dev_alloc_pages() is None
    assert pool.put_bulk(last) == 4
    assert pool.stats().left_refcnt == 5
    pool.put_bulk(ids)
    pool.check()


def test_two_pools_share_a_page_allocator() -> None:
    allocator = memory(1)
    one, two = PagePool(memory=allocator), PagePool(memory=allocator)
    ids = [*one.alloc_bulk(256), *two.alloc_bulk(256)]
    assert len(set(ids)) == 512
    assert one.dev_alloc_pages() is None
    two.put_bulk(ids_of(ids[256:]))
    two.close()
    assert one.alloc_pages().id in ids[256:]


# -- doors that are shut -------------------------------------------------------------------------------------


def test_a_closed_pool_gives_nothing() -> None:
    pool = PagePool(memory=memory())
    pool.close()
    for door in (pool.alloc_pages, pool.dev_alloc_pages, lambda: pool.alloc_frag(64), lambda: pool.alloc(64)):
        with pytest.raises(PoolClosedError, match="closed"):
            door()
    with pytest.raises(PoolClosedError):
        pool.alloc_bulk(1)
    with pytest.raises(PoolClosedError):
        pool.get_user()
    pool.close()


def test_high_water_is_exact() -> None:
    pool = PagePool(memory=memory())
    ids = pool.alloc_bulk(100)
    pool.put_bulk(ids[:50])
    held = [pool.alloc_pages() for _ in range(20)]
    assert (pool.lent, pool.stats().high_water) == (70, 100)
    held += [pool.alloc_pages() for _ in range(31)]
    assert pool.stats().high_water == 101
    del held
    gc.collect()
    assert (pool.lent, pool.stats().high_water) == (50, 101)

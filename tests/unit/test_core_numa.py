# SPDX-License-Identifier: MIT
"""NUMA nodes, on an arena whose slabs claim to be on different ones."""

from __future__ import annotations

import pytest
from core_doubles import NodeMemory

from pagepool import PagePool


def nodes_of(pool: PagePool, ids: object) -> set[int]:
    return {pool.page(page_id).nid for page_id in ids}  # type: ignore[attr-defined]


@pytest.mark.parametrize("nid", [0, 1])
def test_pages_come_from_the_preferred_node(nid: int) -> None:
    pool = PagePool(memory=NodeMemory(0, 1), nid=nid)
    pages = [pool.alloc_pages() for _ in range(300)]
    assert {page.nid for page in pages} == {nid}
    assert pool.nid_preferred == nid


def test_another_node_is_better_than_none() -> None:
    pool = PagePool(memory=NodeMemory(0, 1), nid=0)
    pages = [pool.alloc_pages() for _ in range(1024)]
    assert sorted({page.nid for page in pages}) == [0, 1]
    assert pool.dev_alloc_pages() is None


def test_update_nid_empties_the_cache_and_the_ring_follows_a_page_a_refill() -> None:
    pool = PagePool(memory=NodeMemory(0, 1), nid=0)
    ids = pool.alloc_bulk(128)
    pool.direct_recycling = False
    pool.put_bulk(ids[:6])
    pool.direct_recycling = True
    pool.put_bulk(ids[6:])
    assert (pool.stats().in_ring, pool.stats().in_cache) == (6, 122)
    pool.update_nid(1)
    assert (pool.stats().in_ring, pool.stats().in_cache, pool.stats().left_nid) == (6, 0, 122)
    page = pool.alloc_pages()
    assert page.nid == 1
    assert (pool.stats().waive, pool.stats().in_ring) == (1, 5)
    pool.alloc_bulk(63)
    for refill in range(2, 7):  # each miss of the cache waives one page of the ring, not more
        pool.alloc_bulk(64)
        assert pool.stats().waive == refill
    assert (pool.stats().in_ring, pool.stats().refill, pool.stats().left_waive) == (0, 0, 6)
    pool.check()


def test_a_refill_keeps_what_it_had_before_the_stray_page() -> None:
    memory = NodeMemory(0, 1)
    pool = PagePool(memory=memory, nid=0)
    near = pool.alloc_bulk(64)
    pool.update_nid(1)
    far = pool.alloc_bulk(64)
    pool.direct_recycling = False
    pool.put_bulk(near[:10])
    pool.put_bulk(far[:1])
    pool.put_bulk(near[10:20])
    pool.update_nid(0)
    got = [pool.alloc_pages() for _ in range(10)]
    assert [page.id for page in got] == list(near[:10])[::-1]
    assert (pool.stats().waive, pool.stats().refill, pool.stats().in_ring) == (1, 1, 10)
    pool.check()


def test_nid_changed_does_nothing_where_nothing_changed() -> None:
    pool = PagePool(memory=NodeMemory(0, 1), nid=1)
    pool.alloc_pages().put()
    pool.nid_changed(1)
    assert pool.stats().left_nid == 0
    pool.nid_changed(0)
    assert (pool.stats().left_nid, pool.nid_preferred) == (64, 0)


@pytest.mark.parametrize("nid", [-2, 64])
def test_a_node_that_cannot_be_is_a_value_error(nid: int) -> None:
    with pytest.raises(ValueError, match="no node"):
        PagePool(memory=NodeMemory(0)).update_nid(nid)


def test_no_node_is_where_the_thread_runs() -> None:
    pool = PagePool(memory=NodeMemory(63, 0))  # this machine runs us on node 0 or on one that is not there
    page = pool.alloc_pages()
    assert page.nid in (0, 63)
    pool.check()


def test_a_node_without_memory_does_not_make_the_arena_grow_at_every_miss() -> None:
    memory = NodeMemory(0, 0, 0, 0)
    arena = memory.arena
    for index in (1, 2, 3):
        assert arena.remove_slab(index)
    asked = []

    def grow(order: int, nid: int) -> bool:  # node 1 has nothing to give: node 0 steps in
        asked.append(nid)
        if len(asked) > 3:
            return False
        arena.add_slab(len(asked), 0)
        return True

    arena.grow = grow
    pool = PagePool(memory=memory, nid=1)
    ids = pool.alloc_bulk(1024)
    assert len(ids) == 1024
    assert asked == [1]
    assert pool.put_bulk(ids) == 1024

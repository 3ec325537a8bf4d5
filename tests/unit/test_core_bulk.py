# SPDX-License-Identifier: MIT
"""Many pages with one call: what goes through the doors, and what is turned away without harm."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from core_doubles import ids_of, mapping, memory
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool import MapGranularity, PagePool
from pagepool.dma import HostDevice
from pagepool.errors import ForeignPageError, NotMappedError, PagePoolError


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 127, 128, 129, 500])
def test_bulk_there_and_back(pool: PagePool, n: int) -> None:
    ids = pool.alloc_bulk(n)
    assert len(ids) == len(set(ids)) == n == pool.lent
    assert pool.put_bulk(ids) == n
    assert pool.lent == 0
    out = np.zeros(n, np.uint32)
    assert pool.alloc_bulk(out) == n
    assert len(np.unique(out)) == n
    assert pool.put_bulk(out) == n
    pool.check()


@pytest.mark.parametrize(
    "wrong",
    [
        bytes(8),
        array("H", [1, 2]),
        array("Q", [1, 2]),
        np.zeros(4, np.int64),
        np.zeros(8, np.uint8),
        np.zeros(4, np.float64),
        np.zeros(8, np.uint32)[::2],
        np.zeros((4, 4), np.uint32)[:, :2],
        [1, 2],
        None,
        "1234",
        object(),
    ],
    ids=repr,
)
def test_what_is_no_row_of_uint32_is_refused(pool: PagePool, wrong: Any) -> None:
    device_pool = PagePool(memory=memory(), **mapping(HostDevice()))
    for door in (pool.put_bulk, pool.alloc_bulk, lambda ids: device_pool.dma_addrs(ids, np.zeros(99, np.uint64))):
        with pytest.raises((TypeError, BufferError, ValueError)):
            door(wrong)
    pool.check()
    assert pool.lent == 0


def test_a_read_only_buffer_is_read_and_not_written(pool: PagePool) -> None:
    ids = pool.alloc_bulk(4)
    frozen = np.frombuffer(ids.tobytes(), np.uint32)
    with pytest.raises((BufferError, ValueError)):
        pool.alloc_bulk(frozen)
    assert pool.put_bulk(frozen) == 4
    assert pool.lent == 0


def test_a_negative_count_is_a_value_error(pool: PagePool) -> None:
    with pytest.raises(ValueError, match="-1 pages"):
        pool.alloc_bulk(-1)


def test_ids_that_are_not_lent_here_are_passed_over(pool: PagePool) -> None:
    other = PagePool(memory=pool.memory)
    foreign = other.alloc_bulk(2)
    mine = pool.alloc_bulk(3)
    idle = pool.alloc_bulk(1)
    pool.put_bulk(idle)
    mixed = ids_of([mine[0], 0xFFFFFFFF, foreign[0], mine[1], idle[0], pool.arena.nr_pages, mine[0], mine[2], 511])
    assert pool.put_bulk(mixed) == 3
    assert pool.stats().rejected == 6
    assert (pool.lent, other.lent) == (0, 2)
    pool.check()
    assert other.put_bulk(foreign) == 2


@settings(max_examples=50)
@given(st.lists(st.integers(0, 0xFFFFFFFF) | st.integers(0, 600), max_size=300), st.booleans())
def test_any_ids_at_all_are_harmless(ids: list[int], direct: bool) -> None:
    pool = PagePool(memory=memory(1), pool_size=8)
    lent = set(pool.alloc_bulk(200))
    pool.direct_recycling = direct
    assert pool.put_bulk(ids_of(ids)) == len(lent & set(ids))
    assert pool.lent == len(lent - set(ids))
    pool.check()
    rest = ids_of(lent - set(ids))
    assert pool.put_bulk(rest) == len(rest)
    pool.close()
    assert pool.inflight == 0


def test_an_id_becomes_a_handle_once(pool: PagePool) -> None:
    (page_id,) = pool.alloc_bulk(1)
    page = pool.page(page_id, 128, 1500)
    assert (page.id, page.offset, len(page), page.vaddr & 4095) == (page_id, 128, 1500, 128)
    page[0] = 7
    with pytest.raises(PagePoolError, match="has a handle already"):
        pool.page(page_id)
    del page
    assert pool.lent == 0
    with pytest.raises(ForeignPageError):
        pool.page(page_id)


@pytest.mark.parametrize(("offset", "length"), [(5000, -1), (-1, 10), (0, 4097), (4096, 1), (1 << 40, 5), (4090, 7)])
def test_a_handle_that_does_not_fit_its_page_leaves_the_id_as_it_was(pool: PagePool, offset: int, length: int) -> None:
    (page_id,) = pool.alloc_bulk(1)
    with pytest.raises(ValueError, match="do not fit"):
        pool.page(page_id, offset, length)
    assert len(pool.page(page_id, 4096)) == 0
    assert pool.lent == 0


@pytest.mark.parametrize("page_id", [-1, 1 << 32, 1 << 70, 100_000])
def test_ids_out_of_range_are_foreign(pool: PagePool, page_id: int) -> None:
    with pytest.raises(ForeignPageError):
        pool.page(page_id)
    with pytest.raises((ForeignPageError, NotMappedError)):
        pool.dma_addr(page_id)


def test_a_handle_of_an_id_that_went_home_in_a_bulk_is_dead(pool: PagePool) -> None:
    ids = pool.alloc_bulk(2)
    page = pool.page(ids[0])
    pool.put_bulk(ids)
    assert not page.is_live
    again = pool.alloc_bulk(2)
    with pytest.raises(PagePoolError, match="put"):
        page.put()
    del page
    assert pool.lent == 2
    pool.put_bulk(again)
    assert pool.lent == 0


def test_an_id_that_was_put_and_is_only_looked_at_becomes_no_handle(pool: PagePool) -> None:
    ids = pool.alloc_bulk(1)
    lease = pool.lease(ids)
    assert pool.put_bulk(ids) == 1
    with pytest.raises(ForeignPageError, match="not lent"):
        pool.page(ids[0])
    del lease
    assert pool.lent == 0


def test_what_the_ring_holds_is_nobodys_to_change(pool: PagePool) -> None:
    pool.put_bulk(pool.alloc_bulk(200))
    for door in (lambda: pool.ring.produce([0xFFFFFFFE]), lambda: pool.ring.consume(1)):
        with pytest.raises(TypeError, match="a pool's"):
            door()
    assert len(set(pool.alloc_bulk(200))) == 200


def test_dma_addrs_end_where_nothing_is_mapped() -> None:
    for granularity in MapGranularity:
        pool = PagePool(memory=memory(2), **mapping(HostDevice(granularity=granularity)))
        ids = pool.alloc_bulk(5)
        out = np.zeros(5, np.uint64)
        assert pool.dma_addrs(ids, out) == 5
        assert out.tolist() == [pool.dma_addr(page_id) for page_id in ids]
        assert out.tolist() == [pool.page(page_id).dma_addr for page_id in ids]
        with pytest.raises(ValueError, match="one uint64 for each id"):
            pool.dma_addrs(ids, np.zeros(4, np.uint64))
        assert pool.dma_addrs(ids_of([ids[0], 0xFFFFFFFF, ids[1]]), out) == 1
    absent = pool.arena.nr_pages - 1
    assert pool.dma_addrs(ids_of([ids[0], absent]), out) == 1
    with pytest.raises(NotMappedError):
        pool.dma_addr(absent)
    with pytest.raises(NotMappedError, match="maps nothing"):
        PagePool(memory=memory()).dma_addrs(ids, out)


def test_a_bulk_of_tracked_pages_has_a_holder() -> None:
    pool = PagePool(memory=memory(), track=True)
    ids = pool.alloc_bulk(200)
    (holder,) = pool.holders()
    assert (holder.count, sorted(holder.ids)) == (200, sorted(ids))
    assert "test_core_bulk.py" in str(holder)
    pool.put_bulk(ids)
    assert pool.holders() == []

# SPDX-License-Identifier: MIT
"""Python that runs in the middle of the slow path: devices that call back into the pool, hooks that raise."""

from __future__ import annotations

import threading

import pytest
from core_doubles import Scripted, mapping, memory, used_pages

from pagepool import PagePool
from pagepool.errors import PoolClosedError


def test_a_device_may_take_and_put_pages_of_the_pool_it_maps_for() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    kept = []

    def nested(vaddr: int) -> None:
        if len(device.mapped) == 10:
            device.on_map = None
            kept.extend(pool.alloc_pages() for _ in range(3))
            kept.pop().put()

    device.on_map = nested
    page = pool.alloc_pages()
    pool.check()
    assert pool.lent == 3
    assert len(device.mapped) == pool.inflight
    assert len({page.id, *(other.id for other in kept)}) == 3
    page.put()
    for other in kept:
        other.put()
    pool.close()
    assert (pool.inflight, device.mapped, device.unmapped_twice, used_pages(pool)) == (0, {}, [], 0)


def test_a_cache_that_was_filled_meanwhile_does_not_overflow() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))

    def fill_and_interrupt(vaddr: int) -> None:
        if device.mapped:
            device.on_map = None
            assert pool.put_bulk(pool.alloc_bulk(128)) == 128
            raise KeyboardInterrupt

    device.on_map = fill_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        pool.alloc_pages()
    assert pool.stats().in_cache == 128
    pool.check()
    ids = pool.alloc_bulk(256)
    assert len(set(ids)) == 256
    assert pool.put_bulk(ids) == 256
    pool.close()
    assert (pool.inflight, device.mapped, device.unmapped_twice) == (0, {}, [])


def test_a_limit_holds_where_the_device_allocates_too() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), limit=10, **mapping(device))
    kept = []

    def nested(vaddr: int) -> None:
        device.on_map = None
        kept.extend(pool.alloc_bulk(10))

    device.on_map = nested
    pool.dev_alloc_pages()
    assert pool.inflight <= 11  # the one being mapped had its place already
    pool.check()


def test_a_device_that_closes_the_pool_while_it_maps_loses_nothing() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))

    def close(vaddr: int) -> None:
        if len(device.mapped) == 5:
            device.on_map = None
            pool.close()

    device.on_map = close
    with pytest.raises(PoolClosedError):
        pool.alloc_pages()
    pool.check()
    assert (pool.inflight, device.mapped, used_pages(pool)) == (0, {}, 0)


def test_an_observer_that_raises_is_heard_and_loses_nothing() -> None:
    pool = PagePool(memory=memory())

    def observer(event: str, page_id: int, count: int) -> None:
        raise RuntimeError(f"{event} {count}")

    pool.set_observer(observer)
    with pytest.raises(RuntimeError, match="hold"):
        pool.alloc_pages()
    pool.check()
    assert (pool.lent, pool.inflight) == (0, 64)
    with pytest.raises(RuntimeError, match="hold"):
        pool.alloc_bulk(65)
    assert (pool.lent, pool.inflight) == (0, 128)
    with pytest.raises(RuntimeError, match="release"):
        pool.close()
    assert (pool.closed, pool.inflight, used_pages(pool)) == (True, 0, 0)


def test_an_observer_hears_of_holds_and_releases_and_never_of_recycling() -> None:
    pool = PagePool(memory=memory(), pool_size=4)
    heard: list[tuple[str, int, int]] = []
    pool.set_observer(lambda *event: heard.append(event))
    page = pool.alloc_pages()
    assert [(event, count) for event, _, count in heard] == [("hold", n) for n in range(1, 65)]
    heard.clear()
    for _ in range(10):
        pool.put_page(page)
        page = pool.alloc_pages()
    assert heard == []
    pool.release_page(page)
    assert heard == [("release", page.id, 1)]
    heard.clear()
    pool.update_nid(0)
    assert heard[0] == ("update_nid", 0, 0)  # as the kernel's tracepoint, before the 63 pages that leave for it
    assert [event for event, _, _ in heard[1:]] == ["release"] * 63
    pool.close()
    assert heard[-1] == ("pool_release", pool.id, 0)


def test_a_watermark_is_crossed_once_each_way() -> None:
    pool = PagePool(memory=memory(), pool_size=1)
    heard: list[bool] = []
    pool.on_watermark(128, 64, lambda which, above: heard.append(above))
    first = pool.alloc_bulk(64)
    assert heard == []
    second = pool.alloc_bulk(128)
    assert heard == [True]
    pool.put_bulk(first)
    pool.put_bulk(second)
    pool.update_nid(0)  # the cache goes back: one page is left, in the ring
    pool.alloc_bulk(2)
    assert heard == [True]  # 65 are held now
    pool.update_nid(0)
    assert pool.inflight < 64
    pool.alloc_bulk(64)
    with pytest.raises(ValueError, match="low must be below high"):
        pool.on_watermark(5, 5, print)


def test_a_watermark_that_raises_is_heard_and_loses_nothing() -> None:
    pool = PagePool(memory=memory(), limit=1)
    pool.on_watermark(1, 0, lambda which, above: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pool.alloc_pages()
    pool.check()
    assert (pool.inflight, pool.lent) == (1, 0)
    assert pool.alloc_pages() is not None


def test_each_thread_hears_of_its_own_trouble() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), pool_size=1, **mapping(device))
    ids = pool.alloc_bulk(3)  # one fits the ring, two leave the pool for it
    half_way, looked = threading.Event(), threading.Event()
    heard: list[str] = []

    def trouble(dma_addr: int) -> None:
        if half_way.is_set():
            assert looked.wait(30)
            raise OSError("a refusal, which is no news")
        half_way.set()
        raise RuntimeError("of the thread that puts")

    def put() -> None:
        try:
            pool.put_bulk(ids)
        except RuntimeError as error:
            heard.append(str(error))

    device.on_unmap = trouble
    thread = threading.Thread(target=put)
    thread.start()
    assert half_way.wait(30)
    mine = pool.alloc_bulk(3)
    assert len(mine) == 3
    pool.alloc_pages().put()
    looked.set()
    thread.join(30)
    device.on_unmap = None
    assert heard == ["of the thread that puts"]
    assert pool.put_bulk(mine) == 3
    pool.check()
    assert pool.lent == 0

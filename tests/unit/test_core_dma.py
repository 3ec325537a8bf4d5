# SPDX-License-Identifier: MIT
"""What a pool asks of its device: when it maps, how often, what it syncs, and what it loses when refused: nothing."""

from __future__ import annotations

import errno

import pytest
from core_doubles import SLAB, Scripted, ids_of, mapping, memory, used_pages

from pagepool import DmaDir, MapGranularity, PagePool, PPFlag
from pagepool.dma import Counting, DmaOp, FaultInjector, HostDevice, Tracer
from pagepool.errors import DeviceError, ForeignPageError, NotMappedError, PagePoolError

PAGE, BY_SLAB, ARENA = MapGranularity.PAGE, MapGranularity.SLAB, MapGranularity.ARENA


def syncs(tracer: Tracer) -> list[tuple[str, int, int]]:
    """Every sync: direction, bytes from the start of its page, length."""
    return [
        (str(event.call.op), (event.call.dma_addr or 0) & 4095, event.call.size_bytes)
        for event in tracer.events
        if event.call.op in (DmaOp.SYNC_FOR_CPU, DmaOp.SYNC_FOR_DEVICE)
    ]


# -- mapping -------------------------------------------------------------------------------------------------


def test_by_page_maps_equal_holds_and_unmaps_equal_releases() -> None:
    device = Counting(HostDevice(granularity=PAGE))
    pool = PagePool(memory=memory(), pool_size=4, **mapping(device))

    def books() -> None:
        stats = pool.stats()
        assert device.counts.maps == stats.hold_cnt == stats.maps
        assert device.counts.unmaps == stats.release_cnt == stats.unmaps
        assert device.counts.mapped == pool.inflight

    for _ in range(3):
        ids = pool.alloc_bulk(300)
        books()
        pool.put_bulk(ids)
        books()
    pool.release_page(page := pool.alloc_pages())
    keep = pool.get_page(other := pool.alloc_pages())
    other.put()
    books()
    pool.update_nid(0)
    books()
    pool.close()
    books()
    assert device.counts.mapped == 0
    assert page.is_live
    assert keep.is_live


@pytest.mark.parametrize("order", [0, 2, 9])
def test_by_page_maps_the_whole_object(order: int) -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), order=order, **mapping(device))
    page = pool.alloc_pages()
    assert device.mapped[page.vaddr] == 4096 << order
    assert page.dma_addr == page.vaddr


def test_recycling_maps_nothing() -> None:
    device = Counting(HostDevice(granularity=PAGE))
    pool = PagePool(memory=memory(), **mapping(device))
    pool.alloc_pages().put()
    before = device.counts
    for _ in range(1000):
        pool.alloc_pages().put()
    assert device.counts == before


def test_by_slab_maps_each_slab_once_for_all_pools() -> None:
    allocator = memory(4)
    device = Counting(HostDevice(granularity=BY_SLAB))
    one = PagePool(memory=allocator, **mapping(device))
    two = PagePool(memory=allocator, **mapping(device))
    one.alloc_bulk(300)
    assert (device.counts.maps, device.counts.map_bytes) == (1, SLAB)
    ids = two.alloc_bulk(1000)
    assert device.counts.maps == 3
    assert two.dma_addr(ids[-1]) == two.arena.base_vaddr + (ids[-1] << 12)
    one.close()
    two.close()
    assert device.counts.unmaps == 0  # a slab's mapping outlives the pools
    two.put_bulk(ids)
    del one, two
    assert allocator.shrink() > 0
    assert device.counts.unmaps >= 2


def test_by_arena_maps_once_in_all() -> None:
    allocator = memory(2, commit=True)
    device = Counting(HostDevice(granularity=ARENA))
    for _ in range(2):
        pool = PagePool(memory=allocator, **mapping(device))
        pool.alloc_bulk(600 if _ == 0 else 100)
    assert (device.counts.maps, device.counts.map_bytes) == (1, allocator.size_bytes)


def test_another_direction_is_another_mapping() -> None:
    allocator = memory(1)
    device = Counting(HostDevice(granularity=BY_SLAB))
    for dma_dir in (DmaDir.FROM_DEVICE, DmaDir.BIDIRECTIONAL):
        pool = PagePool(memory=allocator, flags=PPFlag.DMA_MAP, dev=device, dma_dir=dma_dir)
        assert pool.alloc_pages().dma_addr
    assert device.counts.maps == 2


def test_a_fragments_dma_addr_is_its_own() -> None:
    pool = PagePool(memory=memory(), **mapping(HostDevice()))
    fragments = [pool.alloc_frag(1000) for _ in range(3)]
    assert [f.dma_addr - f.vaddr for f in fragments if f] == [0, 0, 0]


def test_without_a_map_there_is_no_dma_addr() -> None:
    pool = PagePool(memory=memory())
    page = pool.alloc_pages()
    with pytest.raises(NotMappedError, match="maps nothing"):
        _ = page.dma_addr
    with pytest.raises(NotMappedError):
        pool.dma_sync_for_cpu(page, 0, 1)


def test_a_page_of_another_pool_has_no_dma_addr_here() -> None:
    allocator = memory(1)
    one = PagePool(memory=allocator, **mapping(HostDevice(granularity=PAGE)))
    two = PagePool(memory=allocator, **mapping(HostDevice(granularity=PAGE)))
    page = one.alloc_pages()
    with pytest.raises(NotMappedError):
        two.dma_addr(page.id)
    one.release_page(page)
    with pytest.raises(NotMappedError):
        _ = page.dma_addr


# -- syncs, byte by byte ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", MapGranularity)
@pytest.mark.parametrize(
    ("size", "synced"), [(-1, 1500), (0, None), (1, 1), (1499, 1499), (1500, 1500), (4096, 1500), (1 << 40, 1500)]
)
def test_recycling_syncs_what_the_device_may_have_written(
    granularity: MapGranularity, size: int, synced: int | None
) -> None:
    tracer = Tracer(HostDevice(granularity=granularity, needs_sync=True))
    pool = PagePool(memory=memory(1), **mapping(tracer, sync=1500, offset=256))
    page = pool.alloc_pages()
    assert syncs(tracer) == [("sync_for_device", 256, 1500)] * 64  # fresh pages come out synced
    tracer.clear()
    pool.put_page(page, size)
    expected = [] if synced is None else [("sync_for_device", 256, synced)]
    assert syncs(tracer) == expected
    assert pool.stats().syncs == 64 + len(expected)
    ids = pool.alloc_bulk(3)
    tracer.clear()
    assert pool.put_bulk(ids, size) == 3
    assert syncs(tracer) == expected * 3


def test_only_the_last_fragment_syncs_and_all_of_the_page() -> None:
    tracer = Tracer(HostDevice(granularity=PAGE, needs_sync=True))
    pool = PagePool(memory=memory(), **mapping(tracer, sync=4096))
    one, two = pool.alloc_frag(2048), pool.alloc_frag(2048)
    third = pool.alloc_frag(2048)
    tracer.clear()
    assert one is not None
    assert two is not None
    one.put()
    assert syncs(tracer) == []
    two.put()
    assert syncs(tracer) == [("sync_for_device", 0, 4096)]
    assert third is not None


def test_a_view_that_ends_last_syncs_all() -> None:
    tracer = Tracer(HostDevice(needs_sync=True))
    pool = PagePool(memory=memory(), **mapping(tracer, sync=2000))
    page = pool.alloc_pages()
    view = memoryview(page)
    tracer.clear()
    pool.put_page(page, 10)
    assert syncs(tracer) == []
    view.release()
    assert syncs(tracer) == [("sync_for_device", 0, 2000)]


def test_a_page_that_leaves_or_comes_too_late_is_not_synced() -> None:
    tracer = Tracer(HostDevice(needs_sync=True))
    pool = PagePool(memory=memory(), **mapping(tracer, sync=4096))
    page, other, late = (pool.alloc_pages() for _ in range(3))
    keep = pool.get_page(other)
    tracer.clear()
    pool.release_page(page)
    other.put()
    pool.close()
    late.put()
    assert syncs(tracer) == []
    assert keep.is_live


def test_a_device_that_needs_no_sync_gets_none() -> None:
    tracer = Tracer(HostDevice())
    pool = PagePool(memory=memory(), **mapping(tracer, sync=4096))
    page = pool.alloc_pages()
    pool.dma_sync_for_cpu(page, 0, 100)
    page.put()
    assert syncs(tracer) == []


def test_sync_for_cpu_adds_the_pools_offset() -> None:
    tracer = Tracer(HostDevice(needs_sync=True))
    pool = PagePool(memory=memory(), **mapping(tracer, sync=1500, offset=256))
    page = pool.alloc_pages()
    tracer.clear()
    pool.dma_sync_for_cpu(page, 14, 60)
    pool.dma_sync_for_cpu(page.id, 0, 1)
    assert syncs(tracer) == [("sync_for_cpu", 270, 60), ("sync_for_cpu", 256, 1)]
    for offset, size in [(-1, 1), (0, -1), (0, 3841), (3840, 1)]:
        with pytest.raises(ValueError, match="do not fit"):
            pool.dma_sync_for_cpu(page, offset, size)
    other = PagePool(memory=memory(), **mapping(tracer))
    with pytest.raises(ForeignPageError):
        other.dma_sync_for_cpu(page, 0, 1)
    page.put()
    with pytest.raises(PagePoolError, match="dead"):
        pool.dma_sync_for_cpu(page, 0, 1)


# -- refusals ------------------------------------------------------------------------------------------------


def conserved(pool: PagePool, device: Scripted) -> None:
    pool.check()
    assert len(device.mapped) == pool.inflight
    assert device.unmapped_twice == []


@pytest.mark.parametrize(("nth", "came"), [(1, 63), (2, 63), (64, 63)])
def test_a_map_that_fails_costs_one_page_of_the_bulk(nth: int, came: int) -> None:
    inner = Scripted()
    device = FaultInjector(inner)
    device.fail("map", nth=nth)
    pool = PagePool(memory=memory(), **mapping(device))
    page = pool.alloc_pages()
    assert (pool.inflight, pool.stats().map_failed, pool.stats().slow) == (came, 1, 1)
    conserved(pool, inner)
    page.put()
    pool.close()
    assert (pool.inflight, inner.mapped, used_pages(pool)) == (0, {}, 0)


@pytest.mark.parametrize("granularity", MapGranularity)
def test_a_device_that_maps_nothing(granularity: MapGranularity) -> None:
    device = FaultInjector(HostDevice(granularity=granularity))
    device.fail("map", errno=errno.ENOSPC)
    pool = PagePool(memory=memory(), **mapping(device))
    assert pool.dev_alloc_pages() is None
    with pytest.raises(DeviceError, match="ENOSPC"):
        pool.alloc_pages()
    assert list(pool.alloc_bulk(10)) == []
    assert list(pool.alloc_bulk(200)) == []
    assert (pool.inflight, used_pages(pool)) == (0, 0)
    device.clear()
    assert pool.alloc_pages().dma_addr
    assert len(pool.alloc_bulk(200)) == 200


@pytest.mark.parametrize("when", [1, 2, 30, 64])
@pytest.mark.parametrize("door", ["alloc_pages", "dev_alloc_pages", "alloc_frag", "alloc_bulk", "alloc_bulk_nogil"])
def test_ctrl_c_in_map_reaches_the_caller_and_loses_nothing(door: str, when: int) -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    calls = iter(range(1, 1000))

    def interrupt(vaddr: int) -> None:
        if next(calls) == when:
            raise KeyboardInterrupt

    device.on_map = interrupt
    doors = {
        "alloc_frag": lambda: pool.alloc_frag(64),
        "alloc_bulk": lambda: pool.alloc_bulk(100),
        "alloc_bulk_nogil": lambda: pool.alloc_bulk(2048),
    }
    with pytest.raises(KeyboardInterrupt):
        doors.get(door, getattr(pool, door, None))()
    conserved(pool, device)
    assert pool.lent == 0
    assert used_pages(pool) == pool.inflight == when - 1
    assert len(pool.alloc_bulk(200)) == 200
    conserved(pool, device)
    pool.close()


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_sync_that_fails_on_the_way_in_unmaps_again(error: BaseException) -> None:
    device = Scripted(needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=4096))

    def refuse(dma_addr: int) -> None:
        raise error

    device.on_sync = refuse
    with pytest.raises(type(error)):
        pool.alloc_pages()
    conserved(pool, device)
    assert (pool.inflight, used_pages(pool)) == (0, 0)
    device.on_sync = None
    assert pool.alloc_pages().is_live


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_sync_that_fails_on_the_way_home_lets_the_page_go(error: BaseException) -> None:
    device = Scripted(needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=4096))
    page, *ids = pool.alloc_pages(), *pool.alloc_bulk(3)

    def refuse(dma_addr: int) -> None:
        raise error

    device.on_sync = refuse
    with pytest.raises(type(error)):
        pool.put_page(page)
    assert not page.is_live
    if isinstance(error, OSError):
        assert pool.put_bulk(ids_of(ids)) == 3
    else:
        with pytest.raises(KeyboardInterrupt):
            pool.put_bulk(ids_of(ids))
    conserved(pool, device)
    assert (pool.lent, pool.stats().left_sync, pool.stats().map_failed) == (0, 4, 0)


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_an_unmap_that_fails_does_not_keep_the_page(error: BaseException) -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), pool_size=1, **mapping(device))
    ids = pool.alloc_bulk(256)

    def refuse(dma_addr: int) -> None:
        raise error

    device.on_unmap = refuse
    page = pool.page(ids[0])
    with pytest.raises(type(error)):
        pool.release_page(page)
    assert page.is_live
    assert page.refcount == 1
    if isinstance(error, OSError):
        assert pool.put_bulk(ids[1:]) == 255
    else:
        with pytest.raises(KeyboardInterrupt):
            pool.put_bulk(ids[1:])
    conserved(pool, device)
    assert (pool.lent, pool.inflight) == (0, 129)
    with pytest.raises(type(error)):
        pool.update_nid(0)
    conserved(pool, device)


def test_a_device_without_a_granularity_or_dma_addr_is_a_clear_error() -> None:
    with pytest.raises(TypeError, match="no DmaDevice"):
        PagePool(memory=memory(), **mapping(object()))

    class Wrong(HostDevice):
        def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
            return "here"  # type: ignore[return-value]

    pool = PagePool(memory=memory(), **mapping(Wrong(granularity=PAGE)))
    with pytest.raises(TypeError):
        pool.alloc_pages()
    assert (pool.inflight, used_pages(pool)) == (0, 0)

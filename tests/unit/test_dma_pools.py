# SPDX-License-Identifier: MIT
"""Pools in front of layered devices: what is mapped is unmapped exactly once, whatever fails on the way."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from pagepool import PagePool, PPFlag
from pagepool._core.params import SLAB_SIZE
from pagepool.dma import Counting, DmaDir, DmaOp, FaultInjector, HostDevice, MapGranularity, Tracer
from pagepool.memory import PageAllocator

MAP_AND_SYNC = PPFlag.DMA_MAP | PPFlag.DMA_SYNC_DEV


@pytest.fixture
def allocator() -> Iterator[PageAllocator]:
    with PageAllocator(16 * SLAB_SIZE) as allocator:
        yield allocator


def pool_on(device: object, allocator: PageAllocator, **fields: Any) -> PagePool:
    fields = {"flags": PPFlag.DMA_MAP, "dma_dir": DmaDir.FROM_DEVICE, **fields}
    return PagePool(dev=device, memory=allocator, **fields)


def test_an_arena_is_mapped_once_for_all_pools(allocator: PageAllocator) -> None:
    device = Counting(HostDevice(granularity=MapGranularity.ARENA))
    for _ in range(3):
        with pool_on(device, allocator) as pool:
            page = pool.alloc_pages()
            assert page.dma_addr == page.vaddr
            page.put()
    assert device.counts.maps == 1
    assert device.counts.mapped_bytes == allocator.size_bytes


def test_a_slab_is_mapped_once_and_unmapped_when_it_goes(allocator: PageAllocator) -> None:
    device = Counting(HostDevice(granularity=MapGranularity.SLAB))
    with pool_on(device, allocator) as pool:
        pages = [pool.alloc_pages() for _ in range(1000)]
        assert device.counts.mapped_bytes == 2 * SLAB_SIZE
        del pages
    assert device.counts.mapped == 2  # a slab's mapping outlives the pool
    assert allocator.shrink() == 2 * SLAB_SIZE
    assert (device.counts.maps, device.counts.unmaps) == (2, 2)


def test_a_page_is_mapped_when_it_enters_and_unmapped_when_it_leaves(allocator: PageAllocator) -> None:
    device = Counting(HostDevice(granularity=MapGranularity.PAGE))
    with pool_on(device, allocator) as pool:
        for _ in range(100):
            pool.alloc_pages().put()
        assert device.counts.unmaps == 0
        assert device.counts.mapped_bytes == pool.inflight * 4096
    assert device.counts.mapped == 0


@pytest.mark.parametrize(
    "granularity",
    [
        MapGranularity.ARENA,
        MapGranularity.SLAB,
        MapGranularity.PAGE,
    ],
)
def test_a_recycled_page_is_synced_for_the_device(allocator: PageAllocator, granularity: MapGranularity) -> None:
    device = Tracer(HostDevice(granularity=granularity, needs_sync=True))
    with pool_on(device, allocator, flags=MAP_AND_SYNC, max_len=2048, offset=256) as pool:
        page = pool.alloc_pages()
        dma_addr = page.dma_addr
        device.clear()
        pool.put_page(page, 100)
        (event,) = device.events
        assert event.call.op is DmaOp.SYNC_FOR_DEVICE
        assert (event.call.dma_addr, event.call.size_bytes) == (dma_addr + 256, 100)


@pytest.mark.parametrize("granularity", MapGranularity)
def test_a_refused_map_costs_nothing(allocator: PageAllocator, granularity: MapGranularity) -> None:
    counting = Counting(HostDevice(granularity=granularity))
    device = FaultInjector(counting)
    device.fail("map", errno=errno.ENOSPC)
    with pool_on(device, allocator) as pool:
        assert pool.dev_alloc_pages() is None
        assert allocator.stats().used_bytes == 0
        assert counting.counts.maps == 0
        device.clear()
        page = pool.alloc_pages()
        assert page.dma_addr == page.vaddr
        page.put()
        pool.check()
    if granularity is MapGranularity.PAGE:
        assert counting.counts.mapped == 0


def test_pages_whose_map_was_refused_are_not_lost(allocator: PageAllocator) -> None:
    counting = Counting(HostDevice(granularity=MapGranularity.PAGE))
    device = FaultInjector(counting)
    device.fail("map", every=3)
    with pool_on(device, allocator) as pool:
        pages = [pool.dev_alloc_pages() for _ in range(500)]
        assert device.injected > 100
        assert counting.counts.mapped == pool.inflight
        assert allocator.stats().used_bytes == pool.inflight * 4096
        del pages
        pool.check()
    assert counting.counts.mapped == 0
    assert allocator.stats().used_bytes == 0


def test_a_slab_that_will_not_be_unmapped_is_kept(allocator: PageAllocator) -> None:
    device = FaultInjector(HostDevice(granularity=MapGranularity.SLAB))
    with pool_on(device, allocator) as pool:
        pool.alloc_pages().put()
    device.fail("unmap", errno=errno.EBUSY, times=1)
    assert allocator.shrink() == 0
    assert isinstance(allocator.last_error, OSError)
    assert allocator.committed_bytes == SLAB_SIZE
    assert allocator.shrink() == SLAB_SIZE


def test_an_unmap_that_allocates_does_not_hang(allocator: PageAllocator) -> None:
    other = PagePool(memory=allocator, order=9)
    taken: list[object] = []

    class Reentrant(HostDevice):
        def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
            taken.append(other.alloc_pages())

    with pool_on(Reentrant(granularity=MapGranularity.SLAB), allocator) as pool:
        pool.alloc_pages().put()
    assert allocator.shrink() == SLAB_SIZE
    assert len(taken) == 1
    assert allocator.committed_bytes == SLAB_SIZE
    taken.clear()
    gc.collect()
    other.close()

# SPDX-License-Identifier: MIT
"""Pools on page allocators: every kind, shared by several pools, and memory that outlives both."""

from __future__ import annotations

import gc
import weakref

import pytest

from pagepool import PagePool
from pagepool._core.params import SLAB_SIZE
from pagepool.memory import MemoryKind, PageAllocator, default_allocator


@pytest.mark.parametrize("kind", list(MemoryKind))
def test_a_pool_names_a_kind(kind: MemoryKind) -> None:
    with PagePool(memory=kind) as named, PagePool(memory=str(kind)) as spelt:
        assert named.memory is spelt.memory is default_allocator(kind)
        page = named.alloc_pages()
        page[:5] = b"hello"
        assert bytes(page[:5]) == b"hello"
        page.put()


def test_a_pool_that_names_nothing_has_anonymous_memory() -> None:
    with PagePool() as pool:
        assert pool.memory is default_allocator("anonymous")


@pytest.mark.parametrize("memory", ["floppy", 7, object()])
def test_a_pool_of_no_kind_names_the_kinds(memory: object) -> None:
    with pytest.raises(ValueError, match=r"no memory kind .*anonymous, thp, hugetlb, memfd, memfd_hugetlb"):
        PagePool(memory=memory)


def test_pools_share_an_allocator() -> None:
    allocator = PageAllocator(8 * SLAB_SIZE)
    with PagePool(memory=allocator) as first, PagePool(memory=allocator, order=3) as second:
        pages = [pool.alloc_pages() for pool in (first, second) for _ in range(100)]
        vaddrs = {page.vaddr for page in pages}
        assert len(vaddrs) == 200
        end = allocator.base_vaddr + allocator.committed_bytes
        assert all(allocator.base_vaddr <= vaddr < end for vaddr in vaddrs)
        del pages
    assert allocator.stats().used_bytes == 0
    assert allocator.close()


@pytest.mark.parametrize("kind", ["anonymous", "thp", "memfd"])
def test_a_view_of_a_page_outlives_pool_and_allocator(kind: str) -> None:
    allocator = PageAllocator(2 * SLAB_SIZE, kind)
    alive = weakref.ref(allocator._reservation._range)
    pool = PagePool(memory=allocator)
    view = memoryview(pool.alloc_pages())
    pool.close()
    assert not allocator.close()
    del pool, allocator
    gc.collect()
    view[:] = b"x" * len(view)
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_what_a_pool_gives_back_can_be_shrunk() -> None:
    allocator = PageAllocator(8 * SLAB_SIZE)
    with PagePool(memory=allocator, order=9) as pool:
        pages = [pool.alloc_pages() for _ in range(4)]
        assert allocator.committed_bytes == 4 * SLAB_SIZE
        assert allocator.shrink() == 0
        while pages:
            pool.release_page(pages.pop())
        gc.collect()
        assert allocator.shrink() == 4 * SLAB_SIZE
        assert pool.alloc_pages()[0] == 0


def test_a_pool_ends_at_the_allocators_limit_and_goes_on_after() -> None:
    allocator = PageAllocator(8 * SLAB_SIZE, limit_bytes=SLAB_SIZE)
    with PagePool(memory=allocator) as pool:
        pages = [pool.alloc_pages() for _ in range(512)]
        assert pool.dev_alloc_pages() is None
        with pytest.raises(MemoryError):
            pool.alloc_pages()
        pages.pop().put()
        pages.append(pool.alloc_pages())
        del pages


def test_the_emergency_reserve_is_used_last_and_not_recycled() -> None:
    allocator = PageAllocator(SLAB_SIZE, reserve_pages=16)
    with PagePool(memory=allocator) as pool:
        pages = [pool.alloc_pages() for _ in range(512)]
        assert pool.dev_alloc_pages() is None
        used = allocator.stats().used_bytes
        pages.pop().put()  # out of the reserve: goes back there, not into the pool's cache
        assert allocator.stats().used_bytes == used - 4096
        del pages

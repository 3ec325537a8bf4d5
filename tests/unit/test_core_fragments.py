# SPDX-License-Identifier: MIT
"""Fragments: how a page is carved, who takes it home, and when it is carved anew in place."""

from __future__ import annotations

import itertools
import random

import pytest
from core_doubles import Scripted, ids_of, mapping, memory, used_pages
from hypothesis import given
from hypothesis import strategies as st

from pagepool import MapGranularity, Page, PagePool
from pagepool.errors import DeadPageError, DoublePutError, PagePoolError

ALIGN = 64


def up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=60), st.booleans(), st.randoms(use_true_random=False))
def test_fragments_tile_their_pages(sizes: list[int], tails: bool, order: random.Random) -> None:
    pool = PagePool(memory=memory(1), order=1)
    whole = pool.object_bytes
    held: list[Page] = []
    page_id, used = -1, whole
    for size in sizes:
        fragment = pool.alloc(size) if tails else pool.alloc_frag(size)
        assert fragment is not None
        wanted = up(size)
        if tails and 2 * size > whole:
            assert (fragment.offset, len(fragment)) == (0, whole)
        else:
            if used + wanted > whole:
                assert fragment.id not in {other.id for other in held}
                page_id, used = fragment.id, 0
            if tails and used + 2 * wanted > whole:
                wanted = whole - used  # no room for another of its size: it gets the rest
            assert (fragment.id, fragment.offset, len(fragment)) == (page_id, used, wanted)
            assert fragment.vaddr == pool.arena.base_vaddr + (page_id << 12) + used
            used += wanted
        held.append(fragment)
    spans = sorted((f.id, f.offset, f.offset + len(f)) for f in held)
    for (a, _, end), (b, start, _) in itertools.pairwise(spans):
        assert a != b or end <= start
    pool.check()
    order.shuffle(held)
    while held:
        held.pop().put()
    pool.check()
    assert (pool.lent, pool.holders()) == (0, [])
    pool.close()
    assert (pool.inflight, used_pages(pool)) == (0, 0)


def test_each_fragment_is_its_own_memory() -> None:
    pool = PagePool(memory=memory())
    fragments = [pool.alloc_frag(1000) for _ in range(12)]
    for number, fragment in enumerate(fragments):
        assert fragment is not None
        fragment[:] = bytes([number]) * len(fragment)
    assert [set(bytes(fragment)) for fragment in fragments if fragment is not None] == [{n} for n in range(12)]


@pytest.mark.parametrize("size", [0, -1, 4097, 1 << 40])
@pytest.mark.parametrize("door", ["alloc", "alloc_frag"])
def test_a_size_that_fits_no_object_is_a_value_error(door: str, size: int) -> None:
    with pytest.raises(ValueError, match="out of range: 1 to 4096 bytes"):
        getattr(PagePool(memory=memory()), door)(size)


def test_the_last_fragment_takes_the_page_home() -> None:
    pool = PagePool(memory=memory())
    one, two = pool.alloc_frag(2048), pool.alloc_frag(2048)
    other = pool.alloc_frag(2048)  # the first page is full and left to its users
    assert one is not None
    assert two is not None
    assert other is not None
    assert one.id == two.id != other.id
    one.put()
    assert pool.lent == 2
    two.put()
    assert (pool.lent, pool.stats().cached) == (1, 1)
    with pytest.raises(DoublePutError):
        two.put()
    other.put()
    assert pool.lent == 0


def test_a_page_nobody_uses_is_carved_again_in_place() -> None:
    pool = PagePool(memory=memory())
    first = pool.alloc_frag(4096)
    assert first is not None
    first.put()
    before = pool.stats()
    second = pool.alloc_frag(4096)
    assert second is not None
    assert second.id == first.id
    after = pool.stats()
    assert (after.fast - before.fast, after.cached - before.cached) == (1, 1)
    assert (after.hold_cnt, after.release_cnt) == (before.hold_cnt, before.release_cnt)
    with pytest.raises(DeadPageError):
        first[0]


def test_a_view_of_a_fragment_keeps_the_page() -> None:
    pool = PagePool(memory=memory())
    fragment = pool.alloc_frag(4096)
    view = memoryview(fragment)  # type: ignore[arg-type]
    fragment.put()  # type: ignore[union-attr]
    again = pool.alloc_frag(4096)
    assert again is not None
    assert fragment is not None
    assert again.id != fragment.id
    view[0] = 1
    view.release()
    assert pool.lent == 1


def test_a_fragment_with_another_holder_leaves_the_pool() -> None:
    pool = PagePool(memory=memory())
    fragment = pool.alloc_frag(4096)
    assert fragment is not None
    keep = pool.get_page(fragment)
    fragment.put()
    assert pool.alloc_frag(4096) is not None
    stats = pool.stats()
    assert (stats.left_refcnt, stats.released_refcnt) == (1, 0)  # as the kernel: nobody put it
    keep[0] = 5
    keep.put()
    pool.check()


def test_ids_of_split_pages_are_nothing_to_bulk_put_and_adopt() -> None:
    pool = PagePool(memory=memory())
    fragment = pool.alloc_frag(100)
    assert fragment is not None
    assert pool.put_bulk(ids_of([fragment.id] * 3)) == 0
    assert pool.stats().rejected == 3
    with pytest.raises(PagePoolError):
        pool.page(fragment.id)
    with pytest.raises(PagePoolError, match="other references"):
        pool.release_page(fragment)
    fragment.put()
    pool.close()
    assert pool.inflight == 0


def test_an_idle_page_is_not_lent_and_a_used_one_has_a_holder() -> None:
    pool = PagePool(memory=memory(), track=True)
    fragment = pool.alloc_frag(100)
    assert pool.lent == 1
    (holder,) = pool.drain(0)
    assert "test_core_fragments.py" in holder.where
    del fragment
    assert (pool.lent, pool.drain(60)) == (0, [])


def test_a_failing_sync_loses_no_fragment_page() -> None:
    device = Scripted(MapGranularity.PAGE, needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=4096))
    fragment = pool.alloc_frag(4096)
    assert fragment is not None
    fragment.put()

    def refuse(dma_addr: int) -> None:
        raise OSError("cannot sync")

    device.on_sync = refuse
    with pytest.raises(OSError, match="cannot sync"):
        pool.alloc_frag(4096)
    device.on_sync = None
    pool.check()
    assert (pool.lent, pool.stats().left_sync) == (0, 1)
    pool.close()
    assert (pool.inflight, device.mapped, device.unmapped_twice) == (0, {}, [])


def test_a_pool_closed_while_its_fragment_page_is_synced_loses_nothing() -> None:
    device = Scripted(MapGranularity.PAGE, needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=4096))
    fragment = pool.alloc_frag(4096)
    assert fragment is not None
    fragment.put()

    def close(dma_addr: int) -> None:
        device.on_sync = None
        pool.close()

    device.on_sync = close
    with pytest.raises(PagePoolError, match="closed"):
        pool.alloc_frag(4096)
    pool.check()
    assert (pool.inflight, device.mapped, device.unmapped_twice) == (0, {}, [])


def test_a_device_that_carves_while_a_page_is_mapped_for_carving() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    nested: list[Page | None] = []

    def carve(vaddr: int) -> None:
        device.on_map = None
        nested.append(pool.alloc_frag(64))

    device.on_map = carve
    outer = pool.alloc_frag(64)
    assert outer is not None
    assert nested[0] is not None
    assert (outer.id, outer.offset) != (nested[0].id, nested[0].offset)
    nested.clear()
    outer.put()
    assert pool.lent == 0
    pool.check()


def test_fragments_at_the_limit_are_none() -> None:
    pool = PagePool(memory=memory(), limit=1)
    held = [pool.alloc_frag(2048), pool.alloc_frag(2048)]
    assert None not in held
    assert pool.alloc_frag(64) is None
    assert pool.alloc(64) is None

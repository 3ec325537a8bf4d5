# SPDX-License-Identifier: MIT
"""The page allocator inside the core: a buddy allocator over slabs, against a model that only knows intervals."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import pytest
from core_doubles import Scripted, mapping, memory
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagepool import PagePool
from pagepool._core.arena import Arena

SLABS = 4
BASE = 1 << 40  # nothing is there: the arena keeps books, it touches no memory


class Buddy(RuleBasedStateMachine):
    """Blocks never overlap, are aligned to their size, stay in their slab; all that is free merges again."""

    @initialize()
    def start(self) -> None:
        self.arena = Arena(BASE, SLABS)
        self.nids: dict[int, int] = {}
        self.blocks: dict[int, int] = {}

    @rule(index=st.integers(0, SLABS - 1), nid=st.integers(0, 2))
    def add_slab(self, index: int, nid: int) -> None:
        if index in self.nids:
            with pytest.raises(ValueError, match="added already"):
                self.arena.add_slab(index, nid)
        else:
            self.arena.add_slab(index, nid)
            self.nids[index] = nid

    @rule(order=st.integers(0, 9), nid=st.integers(0, 2))
    def take(self, order: int, nid: int) -> None:
        try:
            block = self.arena.alloc_block(order, nid)
        except MemoryError:
            assert not any(self.fits(slab, order) for slab in self.nids)
            return
        assert block % (1 << order) == 0
        assert self.nids[block // 512] == nid or not any(
            self.fits(slab, order) for slab, node in self.nids.items() if node == nid
        )
        for other, size in self.blocks.items():
            assert block + (1 << order) <= other or other + (1 << size) <= block
        self.blocks[block] = order

    def fits(self, slab: int, order: int) -> bool:
        """Whether an aligned block of that order is free in the slab."""
        step = 1 << order
        used = [(b, b + (1 << o)) for b, o in self.blocks.items()]
        return any(
            all(end <= start or begin >= start + step for begin, end in used)
            for start in range(slab * 512, (slab + 1) * 512, step)
        )

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def give(self, data: Any) -> None:
        block = data.draw(st.sampled_from(sorted(self.blocks)))
        del self.blocks[block]
        self.arena.free_id(block)
        with pytest.raises(ValueError, match="not a block"):
            self.arena.free_id(block)

    @rule(page_id=st.integers(-1, SLABS * 512))
    def give_what_was_not_taken(self, page_id: int) -> None:
        if page_id not in self.blocks:
            with pytest.raises(ValueError, match="not a block"):
                self.arena.free_id(page_id)

    @rule(index=st.integers(0, SLABS - 1))
    def remove_slab(self, index: int) -> None:
        whole = index in self.nids and not any(block // 512 == index for block in self.blocks)
        assert self.arena.remove_slab(index) == whole
        if whole:
            del self.nids[index]

    @invariant()
    def agrees(self) -> None:
        arena = self.arena
        arena.check()
        used = sum(1 << order for order in self.blocks.values())
        assert arena.nr_added_pages == 512 * len(self.nids)
        assert arena.nr_free_pages == arena.nr_added_pages - used
        assert arena.pages_allocated - arena.pages_freed == used
        busy = {block // 512 for block in self.blocks}
        assert arena.free_slabs() == sorted(set(self.nids) - busy)
        assert [arena.slab_state(index) for index in range(SLABS)] == [index in self.nids for index in range(SLABS)]


Buddy.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestBuddy = Buddy.TestCase


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Arena(BASE, 0), "nr_slabs 0"),
        (lambda: Arena(BASE, (1 << 22) + 1), "out of range"),
        (lambda: Arena(BASE + 4096, 1), "multiple of 2 MiB"),
        (lambda: Arena(BASE, 1).add_slab(1), "slab 1 is out of range: 0 to 0"),
        (lambda: Arena(BASE, 1).add_slab(0, 64), "node 64"),
        (lambda: Arena(BASE, 1).add_slab(-1), "slab -1"),
        (lambda: Arena(BASE, 1).remove_slab(1), "slab 1"),
        (lambda: Arena(BASE, 1).slab_nid(0), "no memory"),
        (lambda: Arena(BASE, 1).alloc_block(10), "order 10"),
        (lambda: Arena(BASE, 1).alloc_block(-1), "order -1"),
    ],
)
def test_senseless_arguments_are_value_errors(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_grow_is_called_where_nothing_is_free() -> None:
    arena = Arena(BASE, 3)
    asked: list[tuple[int, int]] = []

    def grow(order: int, nid: int) -> bool:
        asked.append((order, nid))
        if len(asked) > 2:
            return False
        arena.add_slab(len(asked), nid)
        return True

    arena.grow = grow
    first = arena.alloc_block(9, 5)
    assert (arena.slab_nid(first // 512), asked) == (5, [(9, 5)])
    arena.alloc_block(9, 6)
    with pytest.raises(MemoryError, match="order 9"):
        arena.alloc_block(9, 6)
    assert len(asked) == 3


def test_a_device_that_will_not_unmap_keeps_the_slab() -> None:
    class Refusing:
        def unmap_slab(self, index: int) -> None:
            raise OSError("busy")

    arena = Arena(BASE, 1)
    arena.add_slab(0)
    arena.dma_maps[(0, 0)] = Refusing()
    with pytest.raises(OSError, match="busy"):
        arena.remove_slab(0)
    arena.check()
    assert arena.free_slabs() == [0]
    arena.dma_maps.clear()
    assert arena.remove_slab(0)


def test_threads_share_one_allocator() -> None:
    arena = Arena(BASE, 2)
    arena.add_slab(0)
    arena.add_slab(1, 1)
    failed: list[BaseException] = []

    def churn(seed: int) -> None:
        mine: list[int] = []
        try:
            for step in range(600):
                if (seed * 7 + step * 13) % 3 or not mine:
                    mine.append(arena.alloc_block((seed + step) % 4, seed % 2))
                else:
                    arena.free_id(mine.pop(step % len(mine)))
                if len(mine) > 20:
                    arena.free_id(mine.pop(0))
        except BaseException as error:
            failed.append(error)
        for block in mine:
            arena.free_id(block)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arena.check()
    assert failed == []
    assert (arena.nr_free_pages, arena.free_slabs()) == (1024, [0, 1])


def test_two_threads_that_free_one_block_free_it_once() -> None:
    arena = Arena(BASE, 1)
    arena.add_slab(0)
    freed: list[int] = []
    for _ in range(200):
        block = arena.alloc_block(0)
        barrier = threading.Barrier(2)

        def free(block: int = block, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                arena.free_id(block)
                freed.append(block)
            except ValueError:
                pass

        threads = [threading.Thread(target=free) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    arena.check()
    assert (len(freed), arena.nr_free_pages) == (200, 512)


def test_a_page_on_its_way_into_a_pool_is_not_anybodys_to_free() -> None:
    device = Scripted()
    pool = PagePool(memory=memory(1), **mapping(device))
    freed: list[int] = []

    def free_all(vaddr: int) -> None:
        device.on_map = None
        for page_id in range(pool.arena.nr_pages):
            with suppress(ValueError):
                pool.arena.free_id(page_id)
                freed.append(page_id)

    device.on_map = free_all
    ids = pool.alloc_bulk(100)
    assert (freed, len(set(ids))) == ([], 100)
    pool.put_bulk(ids)
    pool.check()
    pool.close()
    pool.arena.check()


def test_a_check_that_collects_garbage_does_not_wait_for_itself() -> None:
    # The page in the cycle is put, by a thread that is not the owner, into a ring whose lock `check` may hold.
    program = """
import gc, threading
from pagepool import PageAllocator, PagePool
pool = PagePool(memory=PageAllocator(2 << 20))
page = pool.alloc_pages()
def look():
    global page
    gc.disable()
    cycle = [page]
    cycle.append(cycle)
    page = cycle = None
    spare = [{} for _ in range(300)], [() for _ in range(300)]  # no dict comes from a free list now: it is allocated
    gc.set_threshold(1)
    gc.enable()
    pool.check()
    pool.arena.check()
thread = threading.Thread(target=look)
thread.start()
thread.join()
gc.collect()
assert pool.lent == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)

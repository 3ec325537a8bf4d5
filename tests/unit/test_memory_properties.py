# SPDX-License-Identifier: MIT
"""Whatever the order of taking, giving back, growing and shrinking: nothing is lost or overwritten."""

from __future__ import annotations

import ctypes

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pagepool._core.params import SLAB_SIZE
from pagepool.memory import MemoryKind, PageAllocator

LIMIT_SLABS = 4
SETTINGS = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class AllocatorMachine(RuleBasedStateMachine):
    """A page allocator next to a model of it: which blocks are out, and what was written to them."""

    blocks = Bundle("blocks")

    @initialize(kind=st.sampled_from([MemoryKind.ANONYMOUS, MemoryKind.MEMFD]))
    def begin(self, kind: MemoryKind) -> None:
        limit_bytes = LIMIT_SLABS * SLAB_SIZE
        self.allocator = PageAllocator(8 * SLAB_SIZE, kind, prefault=False, limit_bytes=limit_bytes)
        self.out: dict[int, int] = {}  # id -> pages
        self.mark = 0
        self.marks: dict[int, int] = {}

    def word(self, page_id: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(self.allocator.base_vaddr + (page_id << 12))

    @rule(target=blocks, order=st.integers(0, 9))
    def take(self, order: int) -> int | None:
        try:
            page_id: int = self.allocator.arena.alloc_block(order)
        except MemoryError:
            assert self.allocator.committed_bytes == LIMIT_SLABS * SLAB_SIZE
            return None
        span = range(page_id, page_id + (1 << order))
        assert page_id % (1 << order) == 0
        assert not any(at < span.stop and at + pages > page_id for at, pages in self.out.items())
        self.mark += 1
        self.out[page_id], self.marks[page_id] = 1 << order, self.mark
        self.word(page_id).value = self.mark
        self.word(span.stop - 1).value = self.mark
        return page_id

    @rule(page_id=consumes(blocks))
    def give_back(self, page_id: int | None) -> None:
        if page_id is not None:
            assert self.word(page_id).value == self.marks.pop(page_id)
            del self.out[page_id]
            self.allocator.arena.free_id(page_id)

    @rule()
    def grow(self) -> None:
        room = self.allocator.committed_bytes < LIMIT_SLABS * SLAB_SIZE
        assert self.allocator.grow() == room

    @rule(keep_slabs=st.integers(0, 2))
    def shrink(self, keep_slabs: int) -> None:
        before = self.allocator.stats()
        given_back = self.allocator.shrink(keep_slabs * SLAB_SIZE)
        after = self.allocator.stats()
        assert before.committed_bytes - after.committed_bytes == given_back
        assert after.free_bytes >= min(before.free_bytes, keep_slabs * SLAB_SIZE)
        assert after.used_bytes == before.used_bytes

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "allocator"):
            return
        stats = self.allocator.stats()
        assert stats.used_bytes == sum(self.out.values()) * 4096
        assert stats.used_bytes + stats.free_bytes == stats.committed_bytes
        assert stats.committed_bytes == (stats.slabs_grown - stats.slabs_given_back) * SLAB_SIZE
        assert stats.committed_bytes <= LIMIT_SLABS * SLAB_SIZE
        assert len(self.allocator.view()) <= stats.committed_bytes
        for page_id, mark in self.marks.items():
            assert self.word(page_id).value == mark
        self.allocator.arena.check()

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            assert self.allocator.close() == (not self.out)


AllocatorMachine.TestCase.settings = SETTINGS
TestAllocator = AllocatorMachine.TestCase

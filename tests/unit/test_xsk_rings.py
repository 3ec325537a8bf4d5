# SPDX-License-Identifier: MIT
"""The compiled rings of AF_XDP against a kernel that is played by the test: memory, indices, descriptors, no socket."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from core_doubles import memory

from pagepool import PagePool
from pagepool.drivers.af_xdp._rings import XskRings

SIZE = 64


class PlainRing:
    """One ring in ordinary memory, as `RingMap` describes a mapped one; the test is the other side."""

    def __init__(self, entry_bytes: int) -> None:
        self._indices = (ctypes.c_uint32 * 3)()
        self._entries = (ctypes.c_char * (SIZE * entry_bytes))()
        self.producer, self.consumer, self.flags = (ctypes.addressof(self._indices) + 4 * i for i in range(3))
        self.descriptors = ctypes.addressof(self._entries)
        self.nr_entries = SIZE
        self.addrs = np.frombuffer(self._entries, np.uint64)
        self.indices = np.frombuffer(self._indices, np.uint32)


class Kernel:
    """Takes pages from the fill ring and gives them back as frames; sends nothing by itself."""

    def __init__(self, pool: PagePool) -> None:
        self.rx, self.tx, self.fill, self.completion = (PlainRing(n) for n in (16, 16, 8, 8))
        self.rings = XskRings(pool, -1, self.rx, self.tx, self.fill, self.completion)

    def receive(self, n: int, length: int = 60) -> list[int]:
        """Put `n` frames into the rx ring; return their pages."""
        pages = []
        for _ in range(n):
            addr = int(self.fill.addrs[self.fill.indices[1] % SIZE])
            self.fill.indices[1] += 1
            at = 2 * int(self.rx.indices[0] % SIZE)
            self.rx.addrs[at : at + 2] = addr, length
            self.rx.indices[0] += 1
            pages.append(addr >> 12)
        return pages

    @property
    def in_fill(self) -> int:
        return int(self.fill.indices[0] - self.fill.indices[1])

    def close(self) -> None:
        self.rings.close()
        self.rings.take_back()


def with_a_hook(hook: Callable[[], object]) -> tuple[PagePool, Kernel]:
    """A pool that calls `hook` when it takes more than 64 pages from the allocator, and rings that are full."""
    pool = PagePool(memory=memory())
    kernel = Kernel(pool)
    assert kernel.rings.fill_up() == SIZE == kernel.in_fill
    pool.on_watermark(65, 1, lambda which, above: hook())
    return pool, kernel


def test_frames_come_in_and_pages_go_out() -> None:
    pool, kernel = with_a_hook(lambda: None)
    block = np.empty((3, 64), np.uint32)
    pages = kernel.receive(10)
    assert kernel.rings.poll(block, 64) == 10
    assert (block[0, :10].tolist(), set(block[1, :10].tolist()), kernel.rings.offset) == (pages, {60}, 0)
    assert (kernel.in_fill, pool.lent) == (SIZE, SIZE + 10)
    assert pool.put_bulk(block[0, :10].copy()) == 10
    kernel.close()
    assert pool.lent == 0


@pytest.mark.parametrize("budget", [64, 128])
def test_frames_of_a_poll_that_ends_with_an_exception_go_home(budget: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pool, kernel = with_a_hook(interrupt)
    kernel.receive(10)
    with pytest.raises(KeyboardInterrupt):
        kernel.rings.poll(np.empty((3, budget), np.uint32), budget)
    assert pool.lent == SIZE == kernel.in_fill
    kernel.close()
    assert pool.lent == 0
    pool.check()


def test_a_hook_that_polls_does_not_overfill_the_fill_ring() -> None:
    block = np.empty((3, 64), np.uint32)
    pool, kernel = with_a_hook(lambda: kernel.rings.poll(block.copy(), 64))
    kernel.receive(40)
    taken = np.empty((3, 64), np.uint32)
    assert kernel.rings.poll(taken, 64) == 40
    assert kernel.in_fill == SIZE
    assert len(set(kernel.fill.addrs.tolist())) == SIZE
    assert pool.put_bulk(taken[0, :40].copy()) == 40
    kernel.close()
    assert pool.lent == 0
    pool.check()


def test_descriptors_that_contradict_the_books_are_counted_and_dropped() -> None:
    pool, kernel = with_a_hook(lambda: None)
    block = np.empty((3, 64), np.uint32)
    good = kernel.receive(4)
    kernel.rx.addrs[0] = 1 << 60  # no page of the arena
    kernel.rx.addrs[2] = good[2] << 12  # twice
    kernel.rx.addrs[7] = 4097  # longer than its page
    assert kernel.rings.poll(block, 64) == 1
    assert (block[0, 0], kernel.rings.bad_descriptors) == (good[2], 3)
    assert pool.put_bulk(block[0, :1].copy()) == 1
    kernel.close()
    assert pool.lent == 0
    pool.check()

# SPDX-License-Identifier: MIT
"""A device in software and the driver of it, each as short as they can be; the driver can be told to make a mistake."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagepool import Page, PagePool, PPFlag
from pagepool._core.params import SLAB_SIZE
from pagepool.dma import DmaBus, DmaDevice, DmaDir, bus_of
from pagepool.memory import PageAllocator

MAP_AND_SYNC = PPFlag.DMA_MAP | PPFlag.DMA_SYNC_DEV


class TinyNic:
    """Write each frame that comes to the buffer posted first; send what it is told to."""

    def __init__(self, bus: DmaBus) -> None:
        self.bus = bus
        self.posted: deque[int] = deque()
        self.done: deque[int] = deque()

    def receive(self, frame: bytes) -> None:
        self.bus.dma_write(self.posted.popleft(), frame)
        self.done.append(len(frame))

    def send(self, dma_addr: int, length: int) -> bytes:
        return self.bus.dma_read(dma_addr, length)


class TinyDriver:
    """Post pages of a pool to a NIC and collect them; `mistakes` names what it forgets."""

    def __init__(self, pool: PagePool, *mistakes: str) -> None:
        bus = bus_of(pool.params.dev)
        assert bus is not None
        self.pool, self.mistakes, self.nic = pool, mistakes, TinyNic(bus)
        self.pages: deque[Page] = deque()

    def post(self) -> None:
        page = self.pool.alloc_pages()
        self.pages.append(page)
        self.nic.posted.append(page.dma_addr + self.pool.params.offset)

    def collect(self) -> tuple[Page, int]:
        """Return a page and the length of the frame in it, ready for the CPU."""
        page, length = self.pages.popleft(), self.nic.done.popleft()
        if "sync for cpu" not in self.mistakes:
            self.pool.dma_sync_for_cpu(page, 0, length)
        return page, length

    def send(self, page: Page, length: int) -> bytes:
        dma_addr, params = page.dma_addr + self.pool.params.offset, self.pool.params
        if "sync for device" not in self.mistakes:
            params.dev.sync_for_device(dma_addr, length, params.dma_dir)
        return self.nic.send(dma_addr, length)


@contextmanager
def pool_on(device: DmaDevice, **fields: Any) -> Iterator[PagePool]:
    """A pool of its own memory that maps and syncs for a device; pages may be out at its end."""
    settings: dict[str, Any] = {"flags": MAP_AND_SYNC, "dma_dir": DmaDir.BIDIRECTIONAL, "max_len": 4096, **fields}
    with PageAllocator(16 * SLAB_SIZE) as memory:
        pool = PagePool(dev=device, memory=memory, **settings)
        try:
            yield pool
        finally:
            pool.close()

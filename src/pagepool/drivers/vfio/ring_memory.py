# SPDX-License-Identifier: MIT
"""Memory that driver and device share for good: descriptor rings, queues, lists.

Ordinary pages of a pool that is mapped for the device, taken at the start and put at the end. One page is
256 descriptors of 16 bytes, which is what a poll of 64 needs. Invariant: a page is all zeros when it is
handed out, and stays mapped until `close`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pagepool import DmaDir, PagePool, PPFlag
from pagepool.dma.device import DmaDevice
from pagepool.xdp.driver import U8Array

__all__ = ["RingMemory", "check_ring_size"]


def check_ring_size(size: int, entry_bytes: int = 16) -> int:
    """Return `size`, or say which sizes there are: powers of two that fill a page at most.

    Raises
    ------
    ValueError
        It is not one of them.
    """
    most = 4096 // entry_bytes
    if not 8 <= size <= most or size & (size - 1):
        raise ValueError(f"a ring of {size} entries: it must be a power of two from 8 to {most}")
    return size


class RingMemory:
    """Pages for rings.

    Parameters
    ----------
    device : DmaDevice
        Who must reach them.
    memory : PageAllocator
        Where they come from; the same as the frames', so that both are in few mappings.
    nid : int
        NUMA node, -1 for any.

    Notes
    -----
    Context: set up and closed by one thread.
    """

    def __init__(self, device: DmaDevice, memory: Any, nid: int = -1) -> None:
        self.pool = PagePool(
            flags=PPFlag.DMA_MAP, dev=device, dma_dir=DmaDir.BIDIRECTIONAL, pool_size=8, memory=memory, nid=nid
        )
        self._pages: list[Any] = []

    def page(self) -> tuple[U8Array, int]:
        """Return 4096 zeroed bytes and their dma_addr. They live until `close`."""
        page = self.pool.alloc_pages()
        self._pages.append(page)
        view = np.frombuffer(memoryview(page), np.uint8)
        view[:] = 0
        return view, page.dma_addr

    def close(self) -> None:
        """Put all pages; the device must be off. Idempotent. Arrays that are still around keep their page."""
        while self._pages:
            self._pages.pop().put()
        self.pool.close()

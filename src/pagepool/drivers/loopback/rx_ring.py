# SPDX-License-Identifier: MIT
"""The driver's side of a receive ring: post pages, collect the frames that the device has written to them.

Invariant: ``posted[clean:tail]`` (masked) are exactly the pages that the device may write to, and they are
this ring's; a page leaves it to a batch or, at the end, to the pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pagepool.drivers.loopback.rings import DescriptorRing
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["RxRing"]

_REFILL = 64  # post so many at once: the pool's own batch


class RxRing:
    """The driver's receive ring.

    Parameters
    ----------
    ring : DescriptorRing
        Shared with the device.
    pool : PagePool
        Where pages come from.
    headroom : int
        Bytes of each page before the device's first byte.

    Attributes
    ----------
    alloc_failed : int
        Refills that got fewer pages than there were descriptors.

    Context: the queue's owner.
    """

    def __init__(self, ring: DescriptorRing, pool: Any, headroom: int) -> None:
        self.ring = ring
        self.pool = pool
        self.headroom = np.uint64(headroom)
        self.clean = ring.tail
        self.alloc_failed = 0
        self._posted: U32Array = np.zeros(ring.size, np.uint32)
        self._dma_addrs: U64Array = np.zeros(ring.size, np.uint64)
        self._batch = min(_REFILL, ring.size)

    def refill(self) -> None:
        """Post fresh or recycled pages, if there is room for a batch of them."""
        ring = self.ring
        room = ring.size - (ring.tail - self.clean)
        if room < self._batch:
            return
        for span in ring.spans(ring.tail, room):
            ids = self._posted[span]
            got = self.pool.alloc_bulk(ids)
            if got:
                span = slice(span.start, span.start + got)
                dma_addrs = self._dma_addrs[span]
                self.pool.dma_addrs(ids[:got], dma_addrs)
                dma_addrs += self.headroom
                ring.dma_addr[span] = dma_addrs
                ring.status[span] = 0
                ring.tail += got  # the doorbell: from here on the device may write
            if got < len(ids):
                self.alloc_failed += 1
                return

    def collect(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Return ids and lengths, ``(n,) uint32`` each, of up to `budget` frames.

        They are the caller's now.
        """
        ring = self.ring
        n = ring.nr_done(self.clean, min(budget, ring.tail - self.clean))
        if n == 0:
            return None
        spans = ring.spans(self.clean, n)
        if len(spans) == 1:
            ids, lengths = self._posted[spans[0]].copy(), ring.length[spans[0]].astype(np.uint32)
        else:
            ids = np.concatenate([self._posted[span] for span in spans])
            lengths = np.concatenate([ring.length[span] for span in spans]).astype(np.uint32)
        self.clean += n
        return ids, lengths

    def release(self) -> None:
        """Put every page that is still posted; the device must be off."""
        ring = self.ring
        spans = ring.spans(self.clean, ring.tail - self.clean)
        self.clean = ring.head = ring.tail
        for span in spans:
            self.pool.put_bulk(self._posted[span])

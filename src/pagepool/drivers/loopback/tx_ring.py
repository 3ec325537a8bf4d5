# SPDX-License-Identifier: MIT
"""The driver's side of a transmit ring: post frames, put their pages when the device has sent them.

Frames may come from several pools (redirects); each page goes home to its own. Invariant:
``posted[clean:tail]`` (masked) are exactly the pages that the device may still read, and the runs in
`_owners` say, in the same order, whose they are.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from pagepool.drivers.loopback.rings import DescriptorRing
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["TxRing"]

_COMMAND_EOP_RS = 0x09  # end of packet; report status


class TxRing:
    """The driver's transmit ring.

    Parameters
    ----------
    ring : DescriptorRing
        Shared with the device.

    Context: any thread: a redirect comes from the owner of another queue. One lock.
    """

    def __init__(self, ring: DescriptorRing) -> None:
        self.ring = ring
        self.clean = ring.tail
        self._posted: U32Array = np.zeros(ring.size, np.uint32)
        self._owners: deque[tuple[Any, int]] = deque()
        self._lock = threading.Lock()

    def post(self, pool: Any, ids: U32Array, dma_addrs: U64Array, lengths: U32Array) -> int:
        """Post frames of `pool`; return how many of the first found a free descriptor."""
        ring = self.ring
        with self._lock:
            self._put_sent()
            n = min(len(ids), ring.size - (ring.tail - self.clean))
            done = 0
            for span in ring.spans(ring.tail, n):
                part = slice(done, done + span.stop - span.start)
                self._posted[span] = ids[part]
                ring.dma_addr[span] = dma_addrs[part]
                ring.length[span] = lengths[part]
                ring.descriptors["command"][span] = _COMMAND_EOP_RS
                ring.status[span] = 0
                done = part.stop
            if n:
                self._owners.append((pool, n))
                ring.tail += n
        return n

    def put_sent(self) -> int:
        """Put the pages of frames that have been sent; return how many."""
        if self.clean == self.ring.head:
            return 0
        with self._lock:
            return self._put_sent()

    def release(self) -> None:
        """Put every page, sent or not; the device must be off."""
        with self._lock:
            self.ring.head = self.ring.tail
            self._put(self.ring.tail - self.clean)

    def _put_sent(self) -> int:
        n = self.ring.nr_done(self.clean, self.ring.tail - self.clean)
        self._put(n)
        return n

    def _put(self, n: int) -> None:
        while n:
            pool, run = self._owners[0]
            k = min(run, n)
            if k == run:
                self._owners.popleft()
            else:
                self._owners[0] = (pool, run - k)
            for span in self.ring.spans(self.clean, k):
                pool.put_bulk(self._posted[span])
            self.clean += k
            n -= k

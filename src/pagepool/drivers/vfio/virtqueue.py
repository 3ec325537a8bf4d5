# SPDX-License-Identifier: MIT
"""A split virtqueue: a table of descriptors, a ring of those offered, a ring of those used.

The transport's and the device type's business is elsewhere. Unlike a NIC's own ring, buffers may come back in
any order, each by the number of its first descriptor. Invariant: a chain is either free or offered, and what
the device says it has used is believed only if it was offered.

Sections are those of the OASIS "Virtual I/O Device (VIRTIO) Version 1.2".
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from pagepool.drivers.vfio.posted_pages import PostedPages
from pagepool.drivers.vfio.ring_memory import RingMemory, check_ring_size
from pagepool.errors import DeviceError
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["SplitQueue"]

#: 2.7.5 The descriptor table.
DESCRIPTOR = np.dtype([("dma_addr", "<u8"), ("length", "<u4"), ("flags", "<u2"), ("next", "<u2")])
F_NEXT, F_WRITE = 1, 2
# 2.7.6 The available ring (flags, index, then entries of 2 bytes), 2.7.8 the used ring (entries of 8 bytes).
FLAGS, INDEX, ENTRIES = 0, 1, 2
AVAIL_F_NO_INTERRUPT = 1
USED_AT = 1024  # of the page that both rings share: 4 + 2 * 256 bytes before it, 4 + 8 * 256 from it on


class SplitQueue:
    """One virtqueue.

    Parameters
    ----------
    memory : RingMemory
    name : str
        For error texts.
    size : int
        Descriptors, a power of two to 256.
    chain : int
        Descriptors per buffer, 1 or 2; the links are made once.

    Attributes
    ----------
    table : (size,) DESCRIPTOR
    table_dma_addr, avail_dma_addr, used_dma_addr : int
        For the transport.
    heads : int
        Chains there are.
    posted : PostedPages
        By chain.
    offers : int
        Chains offered in all.

    Notes
    -----
    Context: the caller locks.
    """

    def __init__(self, memory: RingMemory, name: str, size: int, chain: int) -> None:
        self.size = check_ring_size(size)
        self.name = name
        self.chain = chain
        self.heads = size // chain
        table, self.table_dma_addr = memory.page()
        rings, self.avail_dma_addr = memory.page()
        self.used_dma_addr = self.avail_dma_addr + USED_AT
        self.table = table.view(DESCRIPTOR)[:size]
        self._avail: npt.NDArray[np.uint16] = rings[:USED_AT].view("<u2")
        self._used_head: npt.NDArray[np.uint16] = rings[USED_AT : USED_AT + 4].view("<u2")
        self._used: U64Array = rings[USED_AT + 4 : USED_AT + 4 + 8 * size].view("<u8")
        self.posted = PostedPages(self.heads)
        self._free = np.arange(self.heads, dtype=np.uint32)  # a stack
        self.nr_free = self.heads
        self.offers = self._seen = 0  # count for ever; the rings hold the low 16 bits
        self.bad = 0

    @property
    def nr_offered(self) -> int:
        """Chains that are the device's."""
        return self.heads - self.nr_free

    def suppress_interrupts(self, suppress: bool) -> None:
        """Ask the device for silence, or for an interrupt when it has used a buffer (2.7.7)."""
        self._avail[FLAGS] = AVAIL_F_NO_INTERRUPT if suppress else 0

    def take_free(self, n: int) -> U32Array:
        """Take `n` free chains; return their numbers, a view that is good until the next call."""
        self.nr_free -= n
        return self._free[self.nr_free : self.nr_free + n]

    def offer(self, chains: U32Array) -> None:
        """Let the device have these chains (2.7.13); it looks when it is notified."""
        n = len(chains)
        at = (np.arange(self.offers, self.offers + n) & (self.size - 1)) + ENTRIES
        self._avail[at] = chains * np.uint32(self.chain)
        self.offers += n
        self._avail[INDEX] = self.offers & 0xFFFF  # the store after which it may read the entries

    def reap(self, limit: int) -> tuple[U32Array, U32Array]:
        """Take up to `limit` chains back that the device has used (2.7.14).

        Returns
        -------
        chains, lengths : (n,) uint32
            Numbers of chains that were offered, each once, and the bytes the device says it wrote. The chains
            are free again; their pages are still in `posted`.

        Raises
        ------
        DeviceError
            The device claims to have used more buffers than it has: nothing it says can be believed.
        """
        news = (int(self._used_head[INDEX]) - self._seen) & 0xFFFF
        if news > self.nr_offered:
            what = f"it was given {self.nr_offered} buffers and claims to have used {news}; close the queue"
            raise DeviceError(errno.EIO, "poll", self.name, what)
        n = min(news, limit)
        used = self._used[np.arange(self._seen, self._seen + n) & (self.size - 1)]
        self._seen += n
        numbers, lengths = used & np.uint64(0xFFFF_FFFF), (used >> np.uint64(32)).astype(np.uint32)
        chains = (numbers // np.uint64(self.chain)).astype(np.uint32)
        good = (numbers < self.heads * self.chain) & (numbers % np.uint64(self.chain) == 0)
        good &= self.posted.is_posted[chains % self.heads]
        if n > 1 and len(np.unique(chains)) < n:
            first = np.zeros(n, np.bool_)
            first[np.unique(chains, return_index=True)[1]] = True
            good &= first
        if not good.all():
            self.bad += int(n - np.count_nonzero(good))
            chains, lengths = chains[good], lengths[good]
        self._free[self.nr_free : self.nr_free + len(chains)] = chains
        self.nr_free += len(chains)
        return chains, lengths

    def release(self) -> None:
        """Send every page home; the device must be off."""
        self.posted.put_all()
        # Our own from here on: the rings' pages may go home.
        self.table, self._avail = self.table.copy(), self._avail.copy()
        self._used, self._used_head = self._used.copy(), self._used_head.copy()


class VirtioRx:
    """The receive side of a network device (5.1.6.3): one buffer per frame, the header in front of it.

    Parameters
    ----------
    queue : SplitQueue
    pool : PagePool
    notify : callable
        Tells the device to look.
    headroom, buffer_bytes, header_bytes : int
        Bytes before the frame, room for header and frame, and the header, which lies at the end of the headroom.

    Notes
    -----
    Context: the queue's owner.
    """

    def __init__(
        self, queue: SplitQueue, pool: Any, notify: Any, *, headroom: int, buffer_bytes: int, header_bytes: int
    ) -> None:
        self.queue = queue
        self.pool = pool
        self._notify = notify
        self._before = np.uint64(headroom - header_bytes)
        self._header_bytes = header_bytes
        self._buffer_bytes = buffer_bytes
        self._bad_lengths = self.alloc_failed = 0
        queue.table["length"] = buffer_bytes
        queue.table["flags"] = F_WRITE

    @property
    def nr_posted(self) -> int:
        """Pages that the device has."""
        return self.queue.nr_offered

    @property
    def errors(self) -> int:
        """Frames with a length that is none, and buffers that the device was never given."""
        return self._bad_lengths + self.queue.bad

    def refill(self) -> None:
        """Post pages, if there is room for a batch of them."""
        queue = self.queue
        if queue.nr_free < min(32, queue.heads // 2):
            return
        ids = np.empty(queue.nr_free, np.uint32)
        got = int(self.pool.alloc_bulk(ids))
        self.alloc_failed += got < len(ids)
        if not got:
            return
        chains, taken = queue.take_free(got), ids[:got]
        dma_addrs: U64Array = np.empty(got, np.uint64)
        self.pool.dma_addrs(taken, dma_addrs)
        queue.posted.hold(chains, self.pool, taken)
        queue.table["dma_addr"][chains] = dma_addrs + self._before
        queue.offer(chains)
        self._notify()

    def collect(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Return ids and lengths of up to `budget` frames; the pages are the caller's."""
        chains, lengths = self.queue.reap(budget)
        good = (lengths > self._header_bytes) & (lengths <= self._buffer_bytes)
        if not good.all():
            self._bad_lengths += int(len(good) - np.count_nonzero(good))
            self.queue.posted.put(chains[~good])
            chains, lengths = chains[good], lengths[good]
        if not len(chains):
            return None
        return self.queue.posted.take(chains), lengths - np.uint32(self._header_bytes)

    def release(self) -> None:
        """Send every page home; the device must be off."""
        self.queue.release()

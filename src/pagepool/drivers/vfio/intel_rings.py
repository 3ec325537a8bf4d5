# SPDX-License-Identifier: MIT
"""Receive and transmit rings as Intel's NICs have had them since the 8254x.

Descriptors of 16 bytes, a head and a tail register. This is the arithmetic that all models share; what the
second half of a descriptor says is a `RxFormat` or a function of the driver's. A descriptor is read as one
word of 64 bits, so that "done" and the length that goes with it come from one load. Invariant: the device owns
the descriptors from its head to the tail we wrote, and one always stays empty, since head == tail means that
it owns none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagepool.dma.vfio import Registers
from pagepool.drivers.vfio.posted_pages import PostedPages
from pagepool.drivers.vfio.ring_memory import RingMemory, check_ring_size
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["IntelRxRing", "IntelTxRing", "RxFormat"]

# Offsets from the first register of a ring; alike in every model.
BASE_LOW, BASE_HIGH, LENGTH, HEAD, TAIL = 0x00, 0x04, 0x08, 0x10, 0x18
STATUS_DD, STATUS_EOP = 1 << 0, 1 << 1
TX_DONE = np.uint64(1 << 32)  # legacy: bit 0 of the status byte; advanced: bit 0 of the status word
REFILL = 32  # descriptors to post at once: a tail write for each would cost more than the descriptor


@dataclass(frozen=True)
class RxFormat:
    """Where a written-back receive descriptor has what, in bits of its second word.

    Parameters
    ----------
    status_shift : int
        Of a field of 32 bits (legacy: 16) that starts with DD and EOP.
    length_shift : int
        Of the 16 bits of length.
    error_mask : int
        Bits of the status that say that the frame is damaged.
    """

    status_shift: int
    length_shift: int
    error_mask: int


class _Ring:
    """What both directions share: the words of the descriptors, and the registers."""

    def __init__(self, memory: RingMemory, registers: Registers, at: int, size: int) -> None:
        self.size = check_ring_size(size)
        self.registers = registers
        self.at = at
        self.posted = PostedPages(size)
        self.clean = 0  # both count for ever and are masked on use
        self.tail = 0
        view, dma_addr = memory.page()
        self.words: U64Array = view.view("<u8").reshape(-1, 2)[:size]
        registers.write32(at + BASE_LOW, dma_addr & 0xFFFF_FFFF)
        registers.write32(at + BASE_HIGH, dma_addr >> 32)
        registers.write32(at + LENGTH, 16 * size)
        registers.write32(at + HEAD, 0)
        registers.write32(at + TAIL, 0)

    @property
    def nr_posted(self) -> int:
        """Descriptors that hold a page."""
        return self.tail - self.clean

    def spans(self, first: int, n: int) -> tuple[slice, ...]:
        """Return the slices of `n` descriptors from index `first` on: none, one, or two where they wrap."""
        at = first & (self.size - 1)
        if at + n <= self.size:
            return (slice(at, at + n),) if n else ()
        return slice(at, self.size), slice(0, at + n - self.size)

    def second_words(self, first: int, n: int) -> U64Array:
        """Return a copy of the second words of `n` descriptors: one load of 64 bits each."""
        parts = [self.words[span, 1] for span in self.spans(first, n)]
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)

    def slots(self, first: int, n: int) -> Any:
        """Return the indices of `n` descriptors from index `first` on."""
        return np.arange(first, first + n) & (self.size - 1)

    def write_tail(self) -> None:
        """Let the device have every descriptor that was written."""
        self.registers.write32(self.at + TAIL, self.tail & (self.size - 1))

    def release(self) -> None:
        """Send every page home; the device must be off."""
        self.posted.put_all()
        self.clean = self.tail
        self.words = np.zeros_like(self.words)  # our own from here on: the ring's page may go home


def _leading(flags: U64Array) -> int:
    """Return how many of `flags` from the first on are not 0: done in order, no gaps."""
    count = int(np.count_nonzero(flags))
    return count if count == len(flags) else int((flags == 0).argmax())


class IntelRxRing(_Ring):
    """A receive ring.

    Parameters
    ----------
    memory : RingMemory
    registers : Registers
    at : int
        Offset of the ring's first register (RDBAL).
    size : int
        Descriptors.
    pool : PagePool
        Where pages come from.
    format : RxFormat
    headroom, buffer_bytes : int
        Bytes of a page before the device's first byte, and how many it may write from there.

    Attributes
    ----------
    errors : int
        Frames that came damaged, in several pieces, or with a length that is none; their pages were put.
    alloc_failed : int
        Refills that got fewer pages than there was room for.

    Notes
    -----
    Context: the queue's owner.
    """

    def __init__(
        self,
        memory: RingMemory,
        registers: Registers,
        at: int,
        size: int,
        pool: Any,
        format: RxFormat,
        *,
        headroom: int,
        buffer_bytes: int,
    ) -> None:
        super().__init__(memory, registers, at, size)
        self.pool = pool
        self.format = format
        self.headroom = np.uint64(headroom)
        self.buffer_bytes = buffer_bytes
        self.errors = self.alloc_failed = 0
        self._mid_frame = False

    def refill(self) -> None:
        """Post pages, if there is room for a batch of them."""
        room = self.size - 1 - (self.tail - self.clean)
        if room < min(REFILL, self.size // 2):
            return
        before = self.tail
        for span in self.spans(self.tail, room):
            ids = np.empty(span.stop - span.start, np.uint32)
            got = int(self.pool.alloc_bulk(ids))
            span, taken = slice(span.start, span.start + got), ids[:got]
            dma_addrs: U64Array = np.empty(got, np.uint64)
            self.pool.dma_addrs(taken, dma_addrs)
            self.posted.hold(span, self.pool, taken)
            self.words[span, 0] = dma_addrs + self.headroom
            self.words[span, 1] = 0  # not done
            self.tail += got
            if got < len(ids):
                self.alloc_failed += 1
                break
        if self.tail != before:
            self.write_tail()

    def collect(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Return ids and lengths of up to `budget` frames; the pages are the caller's."""
        n = min(budget, self.tail - self.clean)
        if n == 0:
            return None
        words = self.second_words(self.clean, n)
        status = words >> np.uint64(self.format.status_shift)
        n = _leading(status & np.uint64(STATUS_DD))
        if n == 0:
            return None
        status, slots = status[:n], self.slots(self.clean, n)
        lengths = (words[:n] >> np.uint64(self.format.length_shift) & np.uint64(0xFFFF)).astype(np.uint32)
        self.clean += n
        # The device says how long a frame is; nothing after this line believes it without this line.
        ends = (status & np.uint64(STATUS_EOP)) != 0
        begins = np.empty(n, np.bool_)
        begins[0], begins[1:] = not self._mid_frame, ends[:-1]
        self._mid_frame = not ends[-1]
        good = ends & begins & (lengths > 0) & (lengths <= self.buffer_bytes)
        good &= (status & np.uint64(self.format.error_mask)) == 0
        if not good.all():
            self.errors += int(n - np.count_nonzero(good))
            self.posted.put(slots[~good])
            slots, lengths = slots[good], lengths[good]
            if not len(slots):
                return None
        return self.posted.take(slots), lengths


class IntelTxRing(_Ring):
    """A transmit ring.

    Parameters
    ----------
    memory, registers, at, size
        As for `IntelRxRing`; `at` is TDBAL's offset.
    second_word : callable
        ``(lengths) -> words``, both ``(n,) uint64``: the command that goes with a buffer of each length; DD
        must be 0 in it, and "report status" set.

    Notes
    -----
    Context: any thread; a redirect comes from the owner of another queue. One lock.
    """

    def __init__(
        self,
        memory: RingMemory,
        registers: Registers,
        at: int,
        size: int,
        second_word: Callable[[U64Array], U64Array],
    ) -> None:
        super().__init__(memory, registers, at, size)
        self._second_word = second_word
        self._told = 0
        self._lock = threading.Lock()

    def post(self, pool: Any, ids: U32Array, dma_addrs: U64Array, lengths: U32Array) -> int:
        """Write descriptors for frames of `pool`; return how many of the first found a free one."""
        with self._lock:
            self._put_sent()
            n = min(len(ids), self.size - 1 - (self.tail - self.clean))
            done = 0
            for span in self.spans(self.tail, n):
                part = slice(done, done + span.stop - span.start)
                self.posted.hold(span, pool, ids[part])
                self.words[span, 0] = dma_addrs[part]
                self.words[span, 1] = self._second_word(lengths[part].astype(np.uint64))
                done = part.stop
            self.tail += n
            return n

    def ring_doorbell(self) -> None:
        """Tell the device how far it may send, if it was not told."""
        if self._told != self.tail:
            with self._lock:
                self._told = self.tail
                self.write_tail()

    def put_sent(self) -> None:
        """Send the pages of frames home that are on the wire."""
        if self.clean != self.tail:
            with self._lock:
                self._put_sent()

    def _put_sent(self) -> None:
        n = self.tail - self.clean
        if n:
            n = _leading(self.second_words(self.clean, n) & TX_DONE)
            self.posted.put(self.slots(self.clean, n))
            self.clean += n

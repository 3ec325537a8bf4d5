# SPDX-License-Identifier: MIT
"""The device side of one queue pair: it works descriptors, reads and writes memory by `dma_addr`, and counts.

It sees rings and a bus, no pool and no page id. Invariant: a descriptor is written back (status DD) exactly
once for each time it was posted, after the device's last access to its memory.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass

import numpy as np

from pagepool.drivers.loopback.bus import DmaBus, read_frames, write_frames
from pagepool.drivers.loopback.rings import (
    RX_DESCRIPTOR,
    STATUS_DD,
    STATUS_EOP,
    TX_DESCRIPTOR,
    DescriptorRing,
)
from pagepool.drivers.loopback.sinks import FrameSink
from pagepool.drivers.loopback.sources import FrameBlock
from pagepool.xdp.driver import U8Array, U32Array

__all__ = ["PortPair", "PortStats"]


@dataclass(slots=True)
class PortStats:
    """What the device counted.

    Attributes
    ----------
    rx_frames, rx_bytes : int
        Written to memory.
    rx_dropped : int
        Frames that found no descriptor posted.
    rx_length_errors : int
        Frames longer than the buffers, or empty; dropped and not in `rx_dropped`.
    tx_frames, tx_bytes : int
        Sent.
    """

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    rx_length_errors: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)


class PortPair:
    """A receive ring and a transmit ring, and what the NIC does with them.

    Parameters
    ----------
    rx_size, tx_size : int
        Descriptors, powers of two.
    wire : callable or None
        Gets the frames sent; ``None`` counts them only and, on a bus without checks, does not read them.

    Attributes
    ----------
    rx, tx : DescriptorRing
    stats : PortStats
    bus : DmaBus or None
        Set by the driver when it opens the queue.
    buffer_bytes : int
        Bytes of each receive buffer, set by the driver.
    tx_paused : bool
        The wire stands still: posted frames stay posted.

    Context: any thread; one lock for each direction.
    """

    def __init__(self, rx_size: int, tx_size: int, wire: FrameSink | None) -> None:
        self.rx = DescriptorRing(rx_size, RX_DESCRIPTOR)
        self.tx = DescriptorRing(tx_size, TX_DESCRIPTOR)
        self.stats = PortStats()
        self.wire = wire
        self.bus: DmaBus | None = None
        self.buffer_bytes = 0
        self.tx_paused = False
        self._rx_lock = threading.Lock()
        self._tx_lock = threading.Lock()

    def receive(self, block: FrameBlock) -> int:
        """Write frames from the wire to the posted buffers; return how many found one."""
        with self._rx_lock:
            rows, lengths = block
            bus = self.bus
            if bus is None:
                self.stats.rx_dropped += len(rows)
                return 0
            if rows.shape[1] > self.buffer_bytes or not lengths.all():
                rows, lengths = self._fitting(rows, lengths)
            n = min(len(rows), self.rx.nr_posted)
            self.stats.rx_dropped += len(rows) - n
            done = 0
            for span in self.rx.spans(self.rx.head, n):
                k = span.stop - span.start
                part = lengths[done : done + k]
                write_frames(bus, self.rx.dma_addr[span], rows[done : done + k], part)
                self.rx.length[span] = part
                self.rx.status[span] = STATUS_DD | STATUS_EOP
                self.rx.head += k
                done += k
                self.stats.rx_frames += k
                self.stats.rx_bytes += int(part.sum())
            return done

    def transmit(self, limit: int | None = None) -> int:
        """Send posted frames, `limit` at most (all by default), paused or not; return how many."""
        with self._tx_lock:
            tx = self.tx
            n = tx.nr_posted if limit is None else min(limit, tx.nr_posted)
            bus = self.bus
            if n <= 0 or bus is None:
                return 0
            # A bus that only translates need not be asked for bytes that nobody wants; one that checks must
            # be.
            read = self.wire is not None or not hasattr(bus, "dma_write_rows")
            frames: list[bytes] = []
            for span in tx.spans(tx.head, n):
                lengths = tx.length[span]
                if read:
                    frames += read_frames(bus, tx.dma_addr[span], lengths)
                self.stats.tx_bytes += int(lengths.sum())
                tx.status[span] = STATUS_DD
                tx.head += len(lengths)
            self.stats.tx_frames += n
        if self.wire is not None:
            self.wire(frames)  # outside the lock: it may be another NIC, or end in this one
        return n

    def _fitting(self, rows: U8Array, lengths: U32Array) -> FrameBlock:
        fits = (lengths <= self.buffer_bytes) & (lengths > 0)
        self.stats.rx_length_errors += len(rows) - int(np.count_nonzero(fits))
        return FrameBlock(rows[fits, : self.buffer_bytes], lengths[fits])

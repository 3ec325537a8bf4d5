# SPDX-License-Identifier: MIT
"""`VfioQueue`: one queue of a NIC that this process drives itself; its pool is what the NIC's DMA may reach.

It joins a pool, the two rings of a driver, NAPI and batches, and knows no register. There is no kernel stack
behind such a NIC: frames that are passed up go to a sink. Invariant: a page is in one place: posted to the
device, in the live batch, posted for sending, kept by the user, or home.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagepool import DmaDir, PagePool, PPFlag
from pagepool.dma.layer import unwrap
from pagepool.drivers.loopback.sinks import as_sink
from pagepool.drivers.rx_queue import RxQueue
from pagepool.drivers.vfio.nic import BUFFER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Nic
from pagepool.errors import DeviceError
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import FramePool, U32Array, U64Array

__all__ = ["XDP_PACKET_HEADROOM", "VfioQueue", "VfioStats"]

XDP_PACKET_HEADROOM = 256


@dataclass(frozen=True, slots=True)
class VfioStats:
    """Figures of one queue.

    Attributes
    ----------
    rx_frames, rx_bytes, tx_frames, tx_bytes : int
        Frames taken from the device, and given to it.
    rx_errors : int
        Descriptors that came back damaged or impossible; their pages were put.
    rx_missed : int
        Frames that found no buffer, where the device counts them.
    tx_errors : int
        Frames too short or too long to send; their pages were put.
    alloc_failed : int
        Refills that the pool could not fill.
    rx_posted, tx_posted : int
        Pages that the device has now, to fill and to send.
    xdp, napi, pool : dict of str to int
        Verdicts, polls, and the pool's figures.
    """

    rx_frames: int
    rx_bytes: int
    rx_errors: int
    rx_missed: int
    tx_frames: int
    tx_bytes: int
    tx_errors: int
    alloc_failed: int
    rx_posted: int
    tx_posted: int
    xdp: dict[str, int]
    napi: dict[str, int]
    pool: Any


class VfioQueue(RxQueue):
    """One pair of queues of a NIC; made by `open_queues`.

    Parameters
    ----------
    nic : Nic
        Open, not started.
    queue : int
        Which of its queues.
    pool : PagePool, optional
        Mapped for the NIC's device (``DMA_MAP``, ``dev=nic.device``) and, to send, ``BIDIRECTIONAL``; its
        `offset` is the headroom. Without one the queue makes its own and closes it.
    memory : PageAllocator, optional
        Of the pool it makes.
    stack : list, callable, PcapngWriter, LoopbackNic or None
        Where frames go that are passed up; ``None`` drops them.

    Attributes
    ----------
    nic : Nic

    Notes
    -----
    Steady state: no page allocator call, no map, no system call, one register write per refill and per batch
    that sends. A poll that finds nothing turns the queue's interrupt on, with one system call.

    Context: see `RxQueue`. A redirect to this queue may come from another queue's thread.
    """

    def __init__(
        self, nic: Nic, queue: int, pool: Any = None, *, memory: Any = None, stack: Any = None, weight: int = 64
    ) -> None:
        self.nic = nic
        self._stack = as_sink(stack, outbound=False)
        self._own_pool: PagePool | None = None
        if pool is None:
            pool = self._own_pool = make_pool(nic, memory)
        self._is_armed = False
        self._rx_frames = self._rx_bytes = self._rx_missed = 0
        self._tx_frames = self._tx_bytes = self._tx_errors = 0
        try:
            self._headroom = _check_pool(pool, nic)
            self._rx, self._tx = nic.open_queue(queue, pool, self._headroom)
            self._rx.refill()
            fd = nic.interrupts.fds[queue] if nic.interrupts is not None else None
            super().__init__(nic.name, queue, pool, fd=fd, weight=weight)
        except BaseException:
            nic.halt()  # what was posted may still be written to
            for ring in (self.__dict__.get("_rx"), self.__dict__.get("_tx")):
                if ring is not None:
                    ring.release()
            if self._own_pool is not None:
                self._own_pool.close()
            raise

    # Receiving.

    def _receive(self, budget: int) -> XdpBatch | None:
        self._tx.put_sent()
        self._rx.refill()
        frames = self._rx.collect(budget)
        if frames is None:
            frames = self._receive_or_arm(budget)
            if frames is None:
                return None
        elif self._is_armed:
            self._is_armed = False
            self.nic.disarm(self.queue)
        ids, lengths = frames
        if len(ids) < budget:
            self.napi.schedule()  # only a poll that finds nothing turns the interrupt on and may end in sleep
        self._rx_frames += len(ids)
        self._rx_bytes += int(lengths.sum())
        return XdpBatch(self, ids, lengths, self._headroom)

    def _receive_or_arm(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Turn the interrupt on, then look once more: a frame that came in between would be slept through."""
        interrupts = self.nic.interrupts
        if interrupts is None:
            self.napi.schedule()  # there is nothing to sleep for: poll again
            return None
        if not interrupts.clear(self.queue) and self._is_armed:
            return None
        self.nic.arm(self.queue)
        self._is_armed = True
        return self._rx.collect(budget)

    # Sending.

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Post frames for sending; see `pagepool.xdp.XdpDriver.transmit`."""
        with self._xmit_lock:  # a redirect of another thread counts in the same figures
            return self._post(self.pool, ids, lengths, offsets)

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Post frames of another queue; see `pagepool.xdp.XdpDriver.xdp_xmit`.

        Frames of a pool that is not mapped for this device, or for one whose memory it shares, are not
        accepted.
        """
        with self._xmit_lock:
            if self._closed or (source is not self.pool and not _reaches(self.nic, source)):
                return 0
            accepted = self._post(source, ids, lengths, offsets)
            self._flush()
            return accepted

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Copy frames to the sink, which stands for the stack that is not there, and put their pages."""
        if self._stack is not None:
            starts = (ids.astype(np.int64) << 12) + offsets
            spans = zip(starts.tolist(), lengths.tolist(), strict=True)
            self._stack([self.memory.flat[start : start + length].tobytes() for start, length in spans])
        self.pool.put_bulk(ids)
        return len(ids)

    def _post(self, pool: Any, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        if pool.params.dma_dir == DmaDir.FROM_DEVICE:
            hint = "make the pool with dma_dir=DmaDir.BIDIRECTIONAL"
            raise DeviceError(errno.EACCES, "transmit on", f"{self.name} queue {self.queue}", hint)
        dma_addrs: U64Array = np.empty(len(ids), np.uint64)
        pool.dma_addrs(ids, dma_addrs)
        dma_addrs += offsets
        good = (lengths >= MIN_FRAME_BYTES) & (lengths <= MAX_FRAME_BYTES)
        if good.all():
            posted = self._tx.post(pool, ids, dma_addrs, lengths)
            self._tx_frames += posted
            self._tx_bytes += int(lengths[:posted].sum())
            return posted
        # A frame of no bytes would stop the device for good. The bad ones are ours now, and dropped.
        places = good.nonzero()[0]
        posted = self._tx.post(pool, ids[places], dma_addrs[places], lengths[places])
        accepted = len(ids) if posted == len(places) else int(places[posted])
        bad = ~good[:accepted]
        self._tx_frames += posted
        self._tx_bytes += int(lengths[places[:posted]].sum())
        self._tx_errors += int(np.count_nonzero(bad))
        pool.put_bulk(ids[:accepted][bad])
        return accepted

    def _flush(self) -> None:
        self._tx.ring_doorbell()

    # The rest.

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a frame comes to a queue that was polled empty.

        Raises
        ------
        DeviceError
            The NIC was opened without interrupts.
        """
        if self.nic.interrupts is None:
            raise DeviceError(errno.EOPNOTSUPP, "wait for", repr(self), "it was opened with interrupts=False")
        return self.nic.interrupts.fds[self.queue]

    def stats(self) -> VfioStats:
        """Return the figures of this moment."""
        if not self._closed:
            self._rx_missed += self.nic.read_missed(self.queue)
        return VfioStats(
            rx_frames=self._rx_frames,
            rx_bytes=self._rx_bytes,
            rx_errors=self._rx.errors,
            rx_missed=self._rx_missed,
            tx_frames=self._tx_frames,
            tx_bytes=self._tx_bytes,
            tx_errors=self._tx_errors,
            alloc_failed=self._rx.alloc_failed,
            rx_posted=self._rx.nr_posted,
            tx_posted=self._tx.nr_posted,
            xdp=self.xdp_stats.as_dict(),
            napi=self.napi.stats.as_dict(),
            pool=self.pool.stats(),
        )

    def _close(self) -> None:
        try:
            self.nic.put_queue(self.queue)
        finally:
            self._rx.release()
            self._tx.release()
            if self._own_pool is not None:
                self._own_pool.close()
            self.nic.close_if_unused()


def make_pool(nic: Nic, memory: Any, **fields: Any) -> PagePool:
    """Make a pool as a queue of this driver wants it: mapped for the NIC, both directions, on the NIC's node."""
    settings: dict[str, Any] = {
        "flags": PPFlag.DMA_MAP,
        "dev": nic.device,
        "dma_dir": DmaDir.BIDIRECTIONAL,
        "pool_size": 4 * nic.ring_size,
        "offset": XDP_PACKET_HEADROOM,
        "max_len": BUFFER_BYTES,
        "memory": memory,
        "nid": nic.device.nid,
    }
    return PagePool(**(settings | fields))


def _check_pool(pool: Any, nic: Nic) -> int:
    """Return the headroom, or say what is wrong with the pool."""
    params = pool.params
    if PPFlag.DMA_MAP not in params.flags or not _reaches(nic, pool):
        raise ValueError(f"the pool must be mapped for this NIC: flags=PPFlag.DMA_MAP, dev={nic.device!r}")
    if (4096 << params.order) < params.offset + BUFFER_BYTES:
        raise ValueError(f"offset {params.offset}: the NIC needs {BUFFER_BYTES} bytes of a page after it")
    return int(params.offset)


def _reaches(nic: Nic, pool: Any) -> bool:
    """Whether the pool's dma_addrs mean the same to this NIC."""
    if pool.params.dev is None:
        return False
    device = unwrap(pool.params.dev)
    return device is nic.device or nic.device.shares_memory_with(device)

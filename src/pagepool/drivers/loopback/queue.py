# SPDX-License-Identifier: MIT
"""`LoopbackQueue`: one queue of the software NIC, with the whole machinery of a real one and no privilege.

The driver: it joins a pool, the rings, NAPI and batches, and moves no byte of a frame. Invariant: a page of its pool is
in one place: posted to the device, in the live batch, posted for sending, kept by the user, or home.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np

from pagepool import DmaDir, PagePool
from pagepool.drivers.loopback.bus import DmaBus, HostBus, bus_for
from pagepool.drivers.loopback.nic import LoopbackNic
from pagepool.drivers.loopback.pool import check_pool, make_pool
from pagepool.drivers.loopback.port import PortPair
from pagepool.drivers.loopback.queue_stats import LoopbackStats
from pagepool.drivers.loopback.rx_ring import RxRing
from pagepool.drivers.loopback.sinks import as_sink
from pagepool.drivers.loopback.tx_ring import TxRing
from pagepool.drivers.rx_queue import RxQueue
from pagepool.errors import DeviceError
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import FramePool, U32Array, U64Array

__all__ = ["LoopbackQueue"]

_STARVED_S = 0.001  # time to the next look when the pool has no page


class LoopbackQueue(RxQueue):
    """One receive and one transmit queue of a `LoopbackNic`.

    Parameters
    ----------
    source : FrameSource, iterable of bytes, path of a capture file, or None
        What comes over the wire of a NIC of its own. ``UdpFlows()`` makes traffic.
    nic : LoopbackNic, optional
        Whose queue to open instead; then `source`, `wire` and the ring sizes are the NIC's.
    queue : int
        Hardware queue.
    pool : PagePool, optional
        With ``DMA_MAP`` and, to send, ``BIDIRECTIONAL``; its `offset` is the headroom. Without one the queue makes its
        own and closes it.
    wire, stack : list, callable, PcapngWriter, LoopbackNic or None
        Where frames go that are sent, and that are passed up; see `as_sink`.
    bus : DmaBus, optional
        How the NIC reaches memory; by default the pool's device where it can read and write, else the host's bus.
    rx_ring, tx_ring : int
        Descriptors, powers of two.

    Attributes
    ----------
    nic : LoopbackNic
    port : PortPair
        The device side.

    Notes
    -----
    Steady state: no page allocator call, no map, no system call; a batch of 64 frames costs some twenty microseconds,
    of which half is the NIC's own copying.

    Context: see `RxQueue`. A redirect to this queue may come from another queue's thread.
    """

    def __init__(
        self,
        source: Any = None,
        *,
        nic: LoopbackNic | None = None,
        queue: int = 0,
        pool: Any = None,
        wire: Any = None,
        stack: Any = None,
        bus: DmaBus | None = None,
        name: str = "loop0",
        rx_ring: int = 256,
        tx_ring: int = 256,
        weight: int = 64,
    ) -> None:
        if nic is not None and (source is not None or wire is not None):
            raise ValueError("source and wire belong to the NIC: give them to LoopbackNic")
        if nic is None:
            nic = LoopbackNic(1, source, wire=wire, name=name, rx_ring=rx_ring, tx_ring=tx_ring)
        stack_sink = as_sink(stack, outbound=False)
        self.nic = nic
        self.port: PortPair = nic.attach(queue, self)
        self._own_pool: PagePool | None = None
        try:
            if pool is None:
                pool = self._own_pool = make_pool(self.port.rx.size)
            headroom = check_pool(pool)
            self._bus = bus or bus_for(pool)
            self._stack = stack_sink
            self._headroom = headroom
            self._event_fd = -1
            self._rx = RxRing(self.port.rx, pool, headroom)
            self._tx = TxRing(self.port.tx)
            super().__init__(nic.name, queue, pool, weight=weight)
        except BaseException:
            nic.detach(queue)
            if self._own_pool is not None:
                self._own_pool.close()
            raise
        self._sync = bool(pool.params.dev.needs_sync)
        self.port.buffer_bytes = self.memory.page_bytes - headroom
        self.port.bus = self._bus

    # Receiving.

    def _receive(self, budget: int) -> XdpBatch | None:
        self._tx.put_sent()
        self._rx.refill()
        frames = self._rx.collect(budget) if self.port.rx.head != self._rx.clean else self._pull(budget)
        if frames is None:
            return None
        ids, lengths = frames
        if len(ids) < budget and self.nic.has_more:
            self.napi.schedule()  # fewer than it could have been, but not the last
        batch = XdpBatch(self, ids, lengths, self._headroom)  # from here on nothing that raises can lose them
        if self._sync:
            for page_id, length in zip(ids.tolist(), lengths.tolist(), strict=True):
                self.pool.dma_sync_for_cpu(page_id, self._headroom - self.pool.params.offset, length)
        return batch

    def _pull(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Let come what there is room for: the wire is as fast as this queue, and loses nothing by being faster."""
        room = min(budget, self.port.rx.nr_posted)
        if room == 0:
            # The pool gave no page. Nobody tells when it has some again: look later, as virtio_net does.
            self.napi.schedule_after(_STARVED_S)
            return None
        if not self.nic.feed(room):
            self._clear_event()
            return None
        frames = self._rx.collect(budget)
        if frames is None and self.nic.has_more:
            self.napi.schedule()  # RSS sent it all to other queues
        return frames

    def interrupt(self) -> None:
        """Say that frames have come; the NIC calls this from any thread."""
        self.napi.schedule()
        self._set_event()

    def _set_event(self) -> None:
        if self._event_fd >= 0:
            os.eventfd_write(self._event_fd, 1)

    def _clear_event(self) -> None:
        if self._event_fd >= 0:
            try:
                os.eventfd_read(self._event_fd)
            except BlockingIOError:
                return
            if self.port.rx.head != self._rx.clean:
                self._set_event()  # a frame came in between

    def _is_finished(self) -> bool:
        return self.nic.exhausted and self.nic.source is not None and self._rx.clean == self.port.rx.head

    # Sending.

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Post frames for sending; see `pagepool.xdp.XdpDriver.transmit`."""
        return self._post(self.pool, ids, lengths, offsets)

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Post frames of another queue; see `pagepool.xdp.XdpDriver.xdp_xmit`.

        Frames of a pool that this NIC's bus cannot reach are not accepted.
        """
        with self._xmit_lock:
            if self._closed:
                return 0
            if source is not self.pool:
                if isinstance(self._bus, HostBus):
                    self._bus.attach(source)
                elif source.params.dev is not self.pool.params.dev:
                    return 0
            return self._post(source, ids, lengths, offsets)

    def xdp_flush(self) -> None:
        """Send what `xdp_xmit` has queued."""
        self._flush()

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Copy frames to the stack's sink and put their pages."""
        if self._stack is not None:
            self._stack(
                [
                    self.memory.flat[start : start + length].tobytes()
                    for start, length in zip(
                        ((ids.astype(np.int64) << 12) + offsets).tolist(), lengths.tolist(), strict=True
                    )
                ]
            )
        self.pool.put_bulk(ids)
        return len(ids)

    def _post(self, pool: Any, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        params = pool.params
        if params.dma_dir == DmaDir.FROM_DEVICE:
            hint = "make the pool with dma_dir=DmaDir.BIDIRECTIONAL"
            raise DeviceError(errno.EACCES, "transmit on", f"{self.name} queue {self.queue}", hint)
        dma_addrs: U64Array = np.empty(len(ids), np.uint64)
        pool.dma_addrs(ids, dma_addrs)
        dma_addrs += offsets
        if params.dev.needs_sync:
            for dma_addr, length in zip(dma_addrs.tolist(), lengths.tolist(), strict=True):
                params.dev.sync_for_device(dma_addr, length, params.dma_dir)
        return self._tx.post(pool, ids, dma_addrs, lengths)

    def _flush(self) -> None:
        port = self.port
        if port.tx.tail != port.tx.head and not port.tx_paused:
            port.transmit()
            self._tx.put_sent()

    # The rest.

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when frames have come; `napi` does not need it."""
        if self._event_fd < 0:
            self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._set_event()  # the first look is free
        return self._event_fd

    def stats(self) -> LoopbackStats:
        """Return the figures of this moment."""
        device = self.port.stats
        return LoopbackStats(
            **device.as_dict(),
            alloc_failed=self._rx.alloc_failed,
            xdp=self.xdp_stats.as_dict(),
            napi=self.napi.stats.as_dict(),
            pool=self.pool.stats(),
        )

    def _close(self) -> None:
        self.port.bus = None  # the device is off
        self.nic.detach(self.queue)
        self._rx.release()
        self._tx.release()
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1
        if self._own_pool is not None:
            self._own_pool.close()

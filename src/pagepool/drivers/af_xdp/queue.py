# SPDX-License-Identifier: MIT
"""`AfXdpQueue`: one queue of a network interface in user space; its pool is the UMEM.

It joins what the other files of this package do one each: socket, steering program, rings, ways out. Pages go
round pool -> fill ring -> kernel -> rx ring -> batch -> verdict -> pool, and in the steady state nothing else
is touched.

Invariant: after `close` every page that the queue or the kernel had is back in its pool, whatever happened in
between.
"""

from __future__ import annotations

import math
import os
import select
import socket as _socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import numpy as np

from pagepool._core.page_pool import PagePool
from pagepool._core.params import DmaDir, PPFlag
from pagepool.drivers.af_xdp._rings import XskRings
from pagepool.drivers.af_xdp.egress import Egress
from pagepool.drivers.af_xdp.home_ns import HomeNs
from pagepool.drivers.af_xdp.queue_stats import AfXdpStats, RingStats
from pagepool.drivers.af_xdp.socket import BindFlag, RingSizes, XdpSocket
from pagepool.drivers.af_xdp.steering import Steering, WantedMode, close_steering, open_steering
from pagepool.drivers.af_xdp.umem_area import UmemArea
from pagepool.errors import DeviceError
from pagepool.memory import MemoryKind, PageAllocator
from pagepool.napi import Napi, guard
from pagepool.xdp import FrameMemory, MemType, XdpBatch, XdpRxqInfo, XdpStats, carry_out
from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["AfXdpQueue"]

_SPARE_PAGES: Final = 512  # beyond what the rings can hold: batches, and what the user keeps
_LOOK_EVERY: Final = 256  # empty polls between two looks at whether the device is still there
_LOOK_S: Final = 0.1  # the same while asleep: poll(2) does not tell
_FLUSH_S: Final = 0.05
_ZEROCOPY_QUIET_S: Final = 0.05
_BUSY_POLL_US: Final = 50

_open_queues: weakref.WeakSet[AfXdpQueue] = weakref.WeakSet()


class AfXdpQueue:
    """Open a receive and transmit queue.

    Parameters
    ----------
    ifname : str
        The interface, in the calling thread's network namespace.
    queue : int
        Its queue.
    frames : int, optional
        Pages of 4096 bytes in the UMEM, rounded up to 2 MiB; all are pinned. By default what the rings can
        hold and 512 more.
    rx_ring, tx_ring : int
        Entries, powers of two. The fill ring is as long as the rx ring, the completion ring as the tx ring.
    pool_size : int, optional
        Entries of the pool's ptr_ring; by default enough for all pages.
    filter : str
        Which frames to take, see `pagepool.drivers.af_xdp.filter`; all others go to the kernel's stack.
        Shared by all queues of the interface.
    mode : {"auto", "native", "generic"}
        Where the XDP program is attached; ``auto`` is native where the driver can.
    zerocopy : bool, optional
        True: or fail; False: never; None: where the driver can. `is_zerocopy` says which it became.
    busy_poll : float or bool
        Microseconds to go on polling without frames before sleeping; True for never sleeping. Also asks the
        kernel to poll the device from our thread, where it can.
    need_wakeup : bool
        Let the kernel say when it wants a system call.
    share_umem_with : AfXdpQueue, optional
        An open queue whose memory to use: frames can then be redirected between the two without a copy. Mode
        of copying and memory are its.
    memory : PageAllocator, MemoryKind or str, optional
        What the UMEM is made of; by default huge pages where there are any. An allocator must be
        ``commit=True``.

    Raises
    ------
    DeviceError
        The kernel's refusal with the call, the queue and what to do; nothing is left behind.
    FilterError
        The filter does not parse.

    Attributes
    ----------
    name, queue : str, int
        Interface and queue.
    pool : PagePool
        Where the pages of the batches come from and go back to. Its owner is the first thread that polls.
    napi : Napi
        Decides when to poll; used by `run`.
    rxq : XdpRxqInfo
        The registration of pool and queue.
    memory : FrameMemory
        The UMEM as arrays.
    xdp_stats : XdpStats
        Verdicts so far.

    Notes
    -----
    A frame may have 3840 bytes less the driver's own headroom; longer ones are dropped and counted by the
    socket.

    Context: one thread polls (the owner of `pool`); `xdp_xmit`, `stats` and `close` from any. A forked child
    loses the queue, the parent keeps it.
    """

    def __init__(
        self,
        ifname: str,
        queue: int = 0,
        *,
        frames: int | None = None,
        rx_ring: int = 2048,
        tx_ring: int = 2048,
        pool_size: int | None = None,
        filter: str = "all",
        mode: WantedMode = "auto",
        zerocopy: bool | None = None,
        busy_poll: float | bool = 0.0,
        need_wakeup: bool = True,
        share_umem_with: AfXdpQueue | None = None,
        memory: PageAllocator | MemoryKind | str | None = None,
    ) -> None:
        self.closed = True  # until it is open, there is nothing to close
        self.name, self.queue = ifname, queue
        self.xdp_stats = XdpStats()
        self._batch: XdpBatch | None = None
        self._block: U32Array | None = None
        self._handler: Callable[[XdpBatch], object] | None = None
        self._claimed = False
        self._gone: DeviceError | None = None
        self._pid = os.getpid()
        self._spin_us = math.inf if busy_poll is True else float(busy_poll)
        obj = f"{ifname} queue {queue}"
        sizes = RingSizes(rx_ring, tx_ring, rx_ring, tx_ring)
        frames = frames or 2 * rx_ring + tx_ring + _SPARE_PAGES
        with ExitStack() as undo:
            ifindex = _ifindex(ifname, queue)
            self._home = HomeNs()
            undo.callback(self._home.close)
            self._steering: Steering = open_steering(ifname, ifindex, filter, mode)
            undo.callback(close_steering, self._steering)
            self._socket = XdpSocket(obj)
            undo.callback(self._socket.close)
            other = share_umem_with
            self._area = other._share() if other else UmemArea(self._socket, 4096 * frames, memory)
            undo.callback(self._area.put)
            self.pool = self._make_pool(pool_size or frames)
            undo.callback(self.pool.close)
            self.pool.alloc_pages().put()  # the first page maps the arena: this registers the UMEM
            self._socket.set_rings(sizes)
            if busy_poll:
                self._socket.set_busy_poll(_BUSY_POLL_US)
            self._rings = self._make_rings(need_wakeup, bool(busy_poll))
            undo.callback(self._rings.take_back)
            undo.callback(self._socket.close)
            undo.callback(self._rings.close)
            self._rings.fill_up()
            flags = self._bind_flags(zerocopy, need_wakeup)
            self._socket.bind(ifindex, queue, flags, share_umem_with=other._socket if other else None)
            self._socket.set_tx_budget(tx_ring)
            self.is_zerocopy = self._socket.is_zerocopy()
            self.memory = FrameMemory(self.pool)
            self._egress = Egress(self._rings, self.memory, self._steering, self._home, queue)
            self.napi = Napi(self._napi_poll, fd=self._socket.fileno(), name=obj)
            undo.callback(self.napi.close)
            self.rxq = XdpRxqInfo()
            self.rxq.reg(ifname, queue, self.napi.id)
            undo.callback(self.rxq.unreg)
            self.rxq.reg_mem_model(MemType.PAGE_POOL, self.pool)
            self._steering.insert(queue, self._socket.fileno())
            undo.pop_all()
        self.closed = False
        guard.install()
        _open_queues.add(self)

    # -- receive -----------------------------------------------------------------------------------------

    def poll(self, budget: int = 64) -> XdpBatch | None:
        """Take up to `budget` frames; complete the batch before.

        Returns
        -------
        XdpBatch or None
            None where there is no frame. The batch is alive until it is completed, at the latest by the next
            poll.

        Raises
        ------
        DeviceError
            The interface is gone.
        WrongThreadError
            Another thread polls this queue.
        ValueError
            The queue is closed.

        Notes
        -----
        Context: one thread; the first to poll becomes the owner of the pool. No system call, unless the
        driver asks for one.
        """
        if self._batch is not None:
            self._batch.complete()
        if not self._claimed:
            self._become_owner()
        guard.enter()
        try:
            block = self._block
            if block is None or block.shape[1] < budget:
                block = self._block = np.empty((3, budget), np.uint32)
            count = self._rings.poll(block, budget)
            if count:
                self._block = None
                offset = self._rings.offset
                offsets = block[2, :count] if offset < 0 else offset
                self._batch = XdpBatch(self, block[0, :count], block[1, :count], offsets)
                return self._batch
        finally:
            guard.leave()
        if self._rings.nr_tx_queued:
            self._egress.kick()
        if self._egress.refusal or self._rings.empty_polls % _LOOK_EVERY == 0:
            self._check_device()
        return None

    def poll_forever(self, budget: int = 64, timeout: float | None = None) -> Iterator[XdpBatch]:
        """Yield batches, each completed before the next; sleep or spin between them.

        Parameters
        ----------
        budget : int
            Frames per batch.
        timeout : float, optional
            End after so many seconds without a frame; None for never.
        """
        last = time.monotonic()
        while True:
            batch = self.poll(budget)
            if batch is not None:
                yield batch
                batch.complete()
                last = time.monotonic() if timeout is not None or self._spin_us else 0.0
                continue
            idle = time.monotonic() - last if timeout is not None or self._spin_us else 0.0
            if timeout is not None and idle >= timeout:
                return
            if idle * 1e6 >= self._spin_us:
                self.wait(None if timeout is None else timeout - idle)
                if self._spin_us and timeout is None:
                    last = time.monotonic()

    def run(
        self,
        handler: Callable[[XdpBatch], object],
        budget: int = 64,
        seconds: float | None = None,
        until: Callable[[], bool] | None = None,
    ) -> int:
        """Call `handler` with every batch, by the queue's `napi`; returns the number of frames.

        Parameters
        ----------
        handler : callable
            Gives verdicts; `per_frame` adapts a function of one frame. Its exceptions end the run.
        budget : int
            Frames per batch.
        seconds : float, optional
            How long; None for ever.
        until : callable, optional
            Asked between polls; True ends the run.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        total, stopped = 0, False

        def done() -> bool:
            nonlocal stopped
            stopped = until is not None and until()
            return stopped

        self._handler = handler
        try:
            self.napi.schedule()
            while not stopped and (left := deadline - time.monotonic()) > 0:
                total += self.napi.run(
                    done, seconds=min(left, _LOOK_S), budget=budget, busy_poll_us=self._spin_us
                )
                self._check_device()
        finally:
            self._handler = None
            if self._batch is not None:
                self._batch.complete()
        return total

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there are frames; return whether there are.

        Parameters
        ----------
        timeout : float, optional
            Seconds at most; None for ever.

        Raises
        ------
        DeviceError
            The interface went meanwhile.
        """
        self._must_be_open()
        waiter = select.poll()
        waiter.register(self._socket.fileno(), select.POLLIN)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._rings.nr_rx:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._rings.nr_tx_queued:  # the kernel had no room: nothing will wake us when it has
                self._egress.kick()
                left = min(left, 0.001)
            waiter.poll(math.ceil(1e3 * min(left, _LOOK_S)))
            self._check_device()
        return True

    def fileno(self) -> int:
        """Return the socket, readable when there are frames: for epoll, asyncio and the like."""
        return self._socket.fileno()

    # -- the verdicts' ways out (XdpDriver) --------------------------------------------------------------

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Queue frames of this pool for sending; see `XdpDriver`."""
        return self._egress.transmit(ids, lengths, offsets)

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Hand copies of the frames to the kernel's stack, some 50 us each; see `XdpDriver`."""
        return self._egress.pass_to_stack(ids, lengths, offsets)

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Send what another queue received: from the same UMEM as it is, else copied; see `XdpDriver`."""
        return 0 if self.closed else self._egress.xmit(source, ids, lengths, offsets)

    def finish(self, batch: XdpBatch) -> None:
        """Carry out the verdicts and send; see `XdpDriver`."""
        guard.enter()
        try:
            if batch is self._batch:
                self._batch = None
            carry_out(self, batch)
            if not self.closed:
                self._egress.kick()
        finally:
            guard.leave()

    # -- end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop receiving, send what is queued (50 ms at most), and bring every page home. Idempotent.

        Pages that the user kept stay good, and go back to the memory they came from.

        Raises
        ------
        PoolBusyError
            Another thread is inside the queue and does not come out.
        """
        if self.closed:
            return
        with ExitStack() as steps:  # every step is taken, whatever the others raise
            steps.callback(guard.uninstall)
            steps.callback(self._area.put)
            steps.callback(self.pool.close)
            steps.callback(self._egress.close)
            steps.callback(self._home.close)
            steps.callback(self._rings.take_back)
            steps.callback(self._close_socket)
            steps.callback(close_steering, self._steering)
            steps.callback(self.rxq.unreg)
            steps.callback(self.napi.close)
            steps.callback(self._steering.remove, self.queue)
            steps.callback(self._flush)
            if self._batch is not None:
                steps.callback(self._batch.complete)
            self.closed = True
            _open_queues.discard(self)

    def _flush(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        while self._rings.nr_tx_queued and not self._egress.refusal and time.monotonic() < deadline:
            self._egress.kick()
            self._rings.reap()

    def _close_socket(self) -> None:
        self._rings.close()
        self._socket.close()
        if self.is_zerocopy:
            # The driver gives its descriptors back a little after the close; until then it may write to
            # pages.
            time.sleep(_ZEROCOPY_QUIET_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

    # -- figures -----------------------------------------------------------------------------------------

    def stats(self) -> AfXdpStats:
        """Return the figures of this moment: pool, rings, verdicts, the kernel's socket and program."""
        self._must_be_open()
        rings, egress = self._rings, self._egress
        return AfXdpStats(
            name=self.name,
            queue=self.queue,
            mode=self._steering.mode,
            zerocopy=self.is_zerocopy,
            memory=self._area.allocator.describe(),
            pool=self.pool.stats(),
            rings=RingStats(
                rx_frames=rings.rx_frames,
                tx_frames=rings.tx_frames,
                tx_completed=rings.tx_completed,
                nr_fill=rings.nr_fill,
                nr_rx=rings.nr_rx,
                nr_tx_queued=rings.nr_tx_queued,
                nr_tx_outstanding=rings.nr_tx_outstanding,
                rx_kicks=rings.rx_kicks,
                tx_kicks=rings.tx_kicks,
                fill_short=rings.fill_short,
                bad_descriptors=rings.bad_descriptors,
                pass_errors=egress.pass_errors,
                copied=egress.copied,
            ),
            xdp=self.xdp_stats,
            napi=self.napi.stats,
            socket=self._socket.statistics(),
            steering=self._steering.counters(),
        )

    @property
    def mode(self) -> str:
        """Where the XDP program is: ``"native"`` or ``"generic"``."""
        return self._steering.mode

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.mode}, {'zero copy' if self.is_zerocopy else 'copy'}"
        return f"<AfXdpQueue {self.name} queue {self.queue}, {state}>"

    # -- inside ------------------------------------------------------------------------------------------

    def _make_pool(self, pool_size: int) -> PagePool:
        return PagePool(
            flags=PPFlag.DMA_MAP,
            dev=self._area.device,
            dma_dir=DmaDir.BIDIRECTIONAL,
            memory=self._area.allocator,
            pool_size=1 << (pool_size - 1).bit_length(),
        )

    def _make_rings(self, need_wakeup: bool, busy_poll: bool) -> XskRings:
        sock = self._socket
        return XskRings(
            self.pool, sock.fileno(), sock.rx, sock.tx, sock.fill, sock.completion, need_wakeup, busy_poll
        )

    def _bind_flags(self, zerocopy: bool | None, need_wakeup: bool) -> BindFlag:
        flags = BindFlag.USE_NEED_WAKEUP if need_wakeup else BindFlag(0)
        if zerocopy:
            flags |= BindFlag.ZEROCOPY
        elif zerocopy is False or self._steering.mode == "generic":
            flags |= BindFlag.COPY
        return flags

    def _share(self) -> UmemArea:
        self._must_be_open()
        return self._area.get()

    def _become_owner(self) -> None:
        self._must_be_open()
        self.pool.claim()
        self._claimed = True

    def _napi_poll(self, budget: int) -> int:
        batch = self.poll(budget)
        if batch is None:
            return 0
        count = len(batch)
        if self._handler is not None:
            self._handler(batch)
        batch.complete()
        return count

    def _check_device(self) -> None:
        if self._gone is None:
            try:
                self._socket.check_device()
            except DeviceError as error:
                self._gone = error
        if self._gone is not None:
            raise DeviceError(self._gone.errno or 0, self._gone.call, self._gone.obj, self._gone.hint)
        self._egress.refusal = 0  # down, not gone: it may come up again

    def _must_be_open(self) -> None:
        if self.closed:
            why = "" if os.getpid() == self._pid else ": it belongs to the parent process"
            raise ValueError(f"{self.name} queue {self.queue} is closed{why}")

    def _abandon(self) -> None:
        """In a forked child: let go of all descriptors and mappings, touch nothing that the parent uses."""
        self.closed = True
        self._rings.close()
        self._socket.close()
        self._home.close()


def _abandon_after_fork() -> None:
    for queue in list(_open_queues):
        queue._abandon()
    _open_queues.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)


def _ifindex(ifname: str, queue: int) -> int:
    try:
        return _socket.if_nametoindex(ifname)
    except OSError as error:
        hint = "no such interface in this network namespace"
        raise DeviceError(error.errno or 19, "open AF_XDP", f"{ifname} queue {queue}", hint) from None

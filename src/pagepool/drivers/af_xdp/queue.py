# SPDX-License-Identifier: MIT
"""`AfXdpQueue`: one queue of a network interface in user space; its pool is the UMEM.

It joins what the other files of this package do one each to an `RxQueue`: socket, steering program, rings, ways out.
Pages go round pool -> fill ring -> kernel -> rx ring -> batch -> verdict -> pool, and in the steady state nothing else
is touched.

Invariant: after `close` every page that the queue or the kernel had is back in its pool, whatever happened in between.
"""

from __future__ import annotations

import os
import time
import weakref
from typing import Final

import numpy as np

from pagepool._core.params import PagePoolParams
from pagepool.drivers.af_xdp.arrival import StampedBatch
from pagepool.drivers.af_xdp.bpf_object import XdpObject
from pagepool.drivers.af_xdp.queue_parts import QueueParts, pages_for
from pagepool.drivers.af_xdp.queue_stats import AfXdpStats, collect
from pagepool.drivers.af_xdp.socket import RingSizes
from pagepool.drivers.af_xdp.steering import WantedMode
from pagepool.drivers.rx_queue import QueueClosedError, RxQueue
from pagepool.errors import DeviceError, PoolBusyError
from pagepool.memory import MemoryKind, PageAllocator
from pagepool.napi import guard
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["AfXdpQueue", "pages_for_queue"]

_LOOK_EVERY: Final = 256  # empty polls between two looks at whether the device is still there
_BUSY_S: Final = 1.0
_RING: Final = 2048
_RETRY_S: Final = 0.001  # when to try again to send what the device had no room for

_open_queues: weakref.WeakSet[AfXdpQueue] = weakref.WeakSet()


class AfXdpQueue(RxQueue):
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
    params : PagePoolParams, optional
        ``limit``, ``nid``, ``track`` and so on of the pool; device, direction and memory are the queue's. Its
        ``pool_size`` is by default enough for all pages.
    filter : str
        Which frames of this queue to take, see `pagepool.drivers.af_xdp.filter.grammar`; all others go to the
        kernel's stack. Other queues of the interface may have other filters.
    program : str, path-like or XdpObject, optional
        A program of yours instead of a filter, as an object file or as `XdpObject`, whose maps you can then read and
        write. It sends frames to the queue by its XSKMAP; all queues of the interface share it.
    timestamps : bool
        Let the steering program write beside each frame when it came; batches are `StampedBatch`, with
        ``timestamps_ns``. Not with `program`; two helper calls a frame.
    mode : {"auto", "native", "generic"}
        Where the XDP program is attached; ``auto`` is native where the driver can.
    zerocopy : bool, optional
        True: or fail; False: never; None: where the driver can. `is_zerocopy` says which it became.
    busy_poll : bool
        Ask the kernel to poll the device inside our polls, where the driver can (``SO_PREFER_BUSY_POLL``); for a
        thread that spins. Whether it spins is said to `poll_forever` and `run`.
    need_wakeup : bool
        Let the kernel say when it wants a system call.
    promiscuous : bool
        Receive frames for every Ethernet destination, while the queue is open.
    share_umem_with : AfXdpQueue, optional
        An open queue whose memory to use: frames can then be redirected between the two without a copy. Mode
        of copying and memory are its, also how many frames there are: `open_queues` makes enough for all.
    weight : int
        Default budget of `napi`.
    memory : PageAllocator, MemoryKind or str, optional
        What the UMEM is made of; by default huge pages where there are any. An allocator must be
        ``commit=True``.

    Raises
    ------
    DeviceError
        The kernel's refusal with the call, the queue and what to do; nothing is left behind.
    FilterError, ObjectFileError
        The filter does not parse; the program cannot be used.

    Attributes
    ----------
    parts : QueueParts
        What it is made of.
    name, queue, pool, napi, rxq, memory, xdp_stats
        See `RxQueue`.

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
        rx_ring: int = _RING,
        tx_ring: int = _RING,
        params: PagePoolParams | None = None,
        filter: str = "all",
        program: XdpObject | str | os.PathLike[str] | None = None,
        timestamps: bool = False,
        mode: WantedMode = "auto",
        zerocopy: bool | None = None,
        busy_poll: bool = False,
        need_wakeup: bool = True,
        promiscuous: bool = False,
        share_umem_with: AfXdpQueue | None = None,
        weight: int = 64,
        memory: PageAllocator | MemoryKind | str | None = None,
    ) -> None:
        self.name, self.queue = ifname, queue
        self._gone: DeviceError | None = None
        self._pid = os.getpid()
        self._block: U32Array | None = None
        self._batch_type = StampedBatch if timestamps else XdpBatch
        guard.install()
        guard.enter()  # a Ctrl-C waits until there is either a queue or nothing
        try:
            if share_umem_with is not None:
                share_umem_with._must_be_open()
            self.parts = parts = QueueParts(
                ifname,
                queue,
                frames=frames,
                sizes=RingSizes(rx_ring, tx_ring, rx_ring, tx_ring),
                params=params,
                filter=filter,
                program=program,
                timestamps=timestamps,
                mode=mode,
                zerocopy=zerocopy,
                busy_poll=busy_poll,
                need_wakeup=need_wakeup,
                promiscuous=promiscuous,
                share_umem_with=share_umem_with,
                memory=memory,
            )
            self._rings, self._egress, self._wakeup = parts.rings, parts.egress, parts.wakeup
            try:
                super().__init__(ifname, queue, parts.pool, fd=self._wakeup.fileno(), weight=weight)
                parts.start(self.memory)
            except BaseException:
                if not self._closed:
                    self.close()
                parts.close()
                raise
            _open_queues.add(self)
        finally:
            guard.uninstall()
            guard.leave()

    # -- receive -----------------------------------------------------------------------------------------------

    def _receive(self, budget: int) -> XdpBatch | None:
        rings, block = self._rings, self._block
        if block is None or block.shape[1] != budget:
            block = self._block = np.empty((3, budget), np.uint32)
        count = rings.poll(block, budget)
        if not count:
            self._look_round()
            return None
        self._block = None  # the batch's now
        offset = rings.offset
        batch = self._batch_type(self, block[0, :count], block[1, :count], block[2, :count] if offset < 0 else offset)
        if self._closed:  # by another thread, just now: it could not know of these pages
            batch.complete()
            self._must_be_open()
        return batch

    def _look_round(self) -> None:
        """After an empty poll: is there something to send still, and is the device still there?"""
        if self._rings.nr_tx_queued:
            self._egress.kick()
            if self._rings.nr_tx_queued and not self._egress.refusal:
                self.napi.schedule_after(_RETRY_S)  # nothing else would wake us for it
        # The first polls after a sleep without frames, for then it may have been the news of a link.
        if self._egress.refusal or self._rings.empty_polls % _LOOK_EVERY in (1, 2):
            self._wakeup.drain()
            self._check_device()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there are frames, or when a link of the namespace changes."""
        return self._wakeup.fileno()

    # -- the verdicts' ways out (XdpDriver) --------------------------------------------------------------------

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Queue frames of this pool for sending; see `pagepool.xdp.XdpDriver.transmit`."""
        return self._egress.transmit(ids, lengths, offsets)

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Hand copies of the frames to the kernel's stack, some 50 us each; see `pagepool.xdp.XdpDriver`."""
        return self._egress.pass_to_stack(ids, lengths, offsets)

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Send what another queue received: from the same UMEM as it is, else copied; see `pagepool.xdp.XdpDriver`."""
        if self._closed:
            return 0
        done = self._egress.xmit(source, ids, lengths, offsets)
        if self._rings.nr_tx_queued:
            self.napi.schedule()  # what the device had no room for is tried again by this queue's own thread
        return done

    def _flush(self) -> None:
        if not self._closed:
            self._egress.kick()

    # -- the rest ----------------------------------------------------------------------------------------------

    def stats(self) -> AfXdpStats:
        """Return the figures of this moment: pool, rings, verdicts, the kernel's socket and program."""
        self._must_be_open()
        return collect(self.name, self.parts, self.xdp_stats, self.napi.stats)

    @property
    def copied(self) -> int:
        """int : frames redirected here that were copied, for they were in another memory."""
        return self._egress.copied

    @property
    def is_zerocopy(self) -> bool:
        """Whether the device itself reads and writes the pages."""
        return self.parts.is_zerocopy

    @property
    def program(self) -> XdpObject | None:
        """The user's program with its maps; None where a filter decides."""
        return self.parts.steering.program

    @property
    def mode(self) -> str:
        """Where the XDP program is: ``"native"`` or ``"generic"``."""
        return self.parts.steering.mode

    def close(self) -> None:
        """Stop receiving, send what is queued (50 ms at most), and bring every page home. Idempotent.

        Raises
        ------
        PoolBusyError
            Another thread has been inside the queue for a second; nothing has changed.
        """
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                return super().close()
            except PoolBusyError:
                if self._closed or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def _close(self) -> None:
        # Pages that the user kept stay good, and go back to the memory they came from.
        _open_queues.discard(self)
        self.rxq.unreg()
        self.parts.close()

    def __repr__(self) -> str:
        if self._closed:
            state = "closed" if os.getpid() == self._pid else "of the parent process"
        else:
            state = f"{self.mode}, {'zero copy' if self.is_zerocopy else 'copy'}"
        return f"<AfXdpQueue {self.name} queue {self.queue}, {state}>"

    def _check_device(self) -> None:
        if self._gone is None:
            try:
                self.parts.socket.check_device()
            except DeviceError as error:
                self._must_be_open()  # another thread may have closed it meanwhile: that is the better reason
                self._gone = error
        if self._gone is not None:
            raise DeviceError(self._gone.errno or 0, self._gone.call, self._gone.obj, self._gone.hint)
        self._egress.refusal = 0  # down, not gone: it may come up again

    def _must_be_open(self) -> None:
        if self._closed:
            raise QueueClosedError(f"{self!r} is closed")

    def _abandon(self) -> None:
        self._closed = True
        self.parts.abandon()


def pages_for_queue(rx_ring: int | None = None, tx_ring: int | None = None) -> int:
    """Return the pages that a queue with such rings (entries, by default the default) wants of its UMEM."""
    rx, tx = rx_ring or _RING, tx_ring or _RING
    return pages_for(RingSizes(rx, tx, rx, tx))


def _abandon_after_fork() -> None:
    """In a forked child: the queue is the parent's; a child that kept the descriptors would keep it busy."""
    for queue in list(_open_queues):
        queue._abandon()
    _open_queues.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)

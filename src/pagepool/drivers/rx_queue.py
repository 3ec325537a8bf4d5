# SPDX-License-Identifier: MIT
"""What every receive queue does alike: join a pool, a NAPI instance and XDP batches.

A base class without a device. A driver adds `_receive`, the takers of frames (`transmit`, `pass_to_stack`,
`xdp_xmit`), `_flush` and `_close`. Invariant: at most one batch of a queue is alive, and it is completed
before the next is received and before the queue closes.
"""

from __future__ import annotations

import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

from pagepool.errors import PagePoolError, WrongThreadError
from pagepool.napi import NAPI_POLL_WEIGHT, Napi, guard
from pagepool.xdp import FrameMemory, MemType, XdpBatch, XdpRxqInfo, XdpStats, carry_out
from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["QueueClosedError", "RxQueue"]


class QueueClosedError(PagePoolError):
    """A queue was used after `close`."""


class RxQueue(ABC):
    """One receive queue.

    Parameters
    ----------
    name : str
        Network interface.
    queue : int
        Hardware queue of it.
    pool : PagePool
        Where the frames' pages come from. The queue takes a user reference; whoever made the pool closes it.
    fd : int, optional
        Becomes readable when the device has frames.
    weight : int
        Default budget.

    Attributes
    ----------
    pool, napi, rxq, memory, xdp_stats
        See `pagepool.xdp.XdpDriver`; `napi` polls this queue.

    Notes
    -----
    Context: a queue belongs to the thread that first polls it, as its pool does; `claim` moves both. `close`
    by the owner, or when no thread polls it any more.
    """

    _closed = True  # until it is made: what was never made needs no closing

    def __init__(
        self, name: str, queue: int, pool: Any, *, fd: int | None = None, weight: int = NAPI_POLL_WEIGHT
    ) -> None:
        self.name = name
        self.queue = queue
        self.pool: Any = pool
        self.memory = FrameMemory(pool)
        self.xdp_stats = XdpStats()
        self.napi = Napi(self._napi_poll, weight, fd, name=f"{name}-rx-{queue}")
        self.rxq = XdpRxqInfo()
        self.rxq.reg(name, queue, self.napi.id)
        self.rxq.reg_mem_model(MemType.PAGE_POOL, pool)
        self._batch: XdpBatch | None = None
        self._handler: Callable[[XdpBatch], object] | None = None
        self._owner = 0
        self._off_main = False  # the owner is a thread that no Ctrl-C comes to
        self._xmit_lock = threading.Lock()
        self._closed = False
        guard.install()

    # What a driver adds.

    @abstractmethod
    def _receive(self, budget: int) -> XdpBatch | None:
        """Refill, and return up to `budget` frames; Ctrl-C is held back meanwhile."""

    @abstractmethod
    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """See `pagepool.xdp.XdpDriver.transmit`."""

    @abstractmethod
    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """See `pagepool.xdp.XdpDriver.pass_to_stack`."""

    @abstractmethod
    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """See `pagepool.xdp.XdpDriver.xdp_xmit`.

        Another thread may close this queue meanwhile: a driver that does not look by itself holds `_xmit_lock` from
        the look at `_closed` until the frames are where `_close` will find them.
        """

    @abstractmethod
    def _close(self) -> None:
        """Stop the device and put every page that it still has."""

    @abstractmethod
    def _flush(self) -> None:
        """Ring the doorbells, once per batch."""

    @property
    def closed(self) -> bool:
        """bool : whether `close` was called."""
        return self._closed

    @property
    def copied(self) -> int:
        """int : frames redirected here that were copied; 0 for a driver that never copies."""
        return 0

    def _is_finished(self) -> bool:
        """Whether no frame will ever come again (the end of a capture file); by default never."""
        return False

    # What a user calls.

    def poll(self, budget: int = NAPI_POLL_WEIGHT) -> XdpBatch | None:
        """Complete the last batch and receive the next.

        Parameters
        ----------
        budget : int
            Frames at most.

        Returns
        -------
        XdpBatch or None
            At least one frame, or None if there is none now. It lives until it is completed, at the latest by
            the next poll.

        Raises
        ------
        WrongThreadError
            Another thread polls this queue; see `claim`.
        QueueClosedError
            After `close`.

        Notes
        -----
        Context: the owner; the first call makes the caller the owner. Does not sleep and makes no system call
        in the steady state.
        """
        if self._owner != threading.get_ident():
            self._first_poll()
        if self._closed:
            raise QueueClosedError(f"{self!r} is closed")
        if self._batch is not None:
            self._batch.complete()
        if self._off_main:
            batch = self._batch = self._receive(budget)
            return batch
        guard.enter()
        try:
            batch = self._batch = self._receive(budget)
        finally:
            guard.leave()
        return batch

    def poll_forever(
        self, budget: int = NAPI_POLL_WEIGHT, timeout: float | None = None, *, busy_poll_us: float = 0.0
    ) -> Iterator[XdpBatch]:
        """Yield batches; sleep where there is nothing to do.

        Parameters
        ----------
        budget : int
            Frames per batch at most.
        timeout : float, optional
            End after so many seconds without a frame; never by default.
        busy_poll_us : float
            Microseconds to poll without a frame before sleeping.

        Yields
        ------
        XdpBatch
            Completed when the next one is asked for, if it was not before.

        Notes
        -----
        Ends also when ``napi.stop()`` is called, and when no frame will ever come again.
        """
        self._begin(None)
        napi = self.napi
        busy_s, last = busy_poll_us / 1e6, time.monotonic()
        while True:
            if napi.poll(budget):
                assert self._batch is not None
                yield self._batch
                if busy_s:
                    last = time.monotonic()
                if napi.is_stopping and not napi.wait(0):
                    return
            elif self._is_finished() or (not (busy_s and time.monotonic() - last < busy_s) and not napi.wait(timeout)):
                return

    def run(
        self,
        handler: Callable[[XdpBatch], object],
        budget: int = NAPI_POLL_WEIGHT,
        seconds: float | None = None,
        *,
        until: Callable[[], bool] | None = None,
        busy_poll_us: float = 0.0,
    ) -> int:
        """Call ``handler(batch)`` for every batch and complete it.

        Parameters
        ----------
        handler : callable
            Judges the frames of a batch; `pagepool.xdp.per_frame` makes one from a function of one frame.
        budget : int
            Frames per batch at most.
        seconds : float, optional
            Longest time to run.
        until : callable, optional
            Asked after every batch; True ends the run.
        busy_poll_us : float
            Microseconds to poll without a frame before sleeping.

        Returns
        -------
        int
            Frames received.

        Notes
        -----
        Ends also when ``napi.stop()`` is called, and when no frame will ever come again. An exception of the
        handler ends it; the verdicts given by then are carried out, the other frames recycled.
        """
        self._begin(handler)

        def done() -> bool:
            return (until is not None and until()) or self._is_finished()

        try:
            return self.napi.run(done, seconds=seconds, budget=budget, busy_poll_us=busy_poll_us)
        finally:
            self._handler = None

    def claim(self) -> None:
        """Make the calling thread the owner of the queue and its pool.

        The old owner must be done with them.
        """
        self.pool.claim()
        self._off_main = not guard.is_delayed()
        self._owner = threading.get_ident()

    def finish(self, batch: XdpBatch) -> None:
        """Carry the verdicts of a batch out; `XdpBatch.complete` calls this."""
        if self._off_main and self._owner == threading.get_ident():
            self._finish(batch)
            return
        guard.enter()
        try:
            if self._owner not in (0, threading.get_ident()):
                batch.drop()  # it died in a thread that must not touch the device: its pages go home
            self._finish(batch)
        finally:
            guard.leave()

    def close(self) -> None:
        """Complete the last batch, stop the device, put every page and let go of the pool. Idempotent.

        Raises
        ------
        PoolBusyError
            Another thread polls it right now; nothing has changed.
        """
        if self._closed:
            return
        if self._owner not in (0, threading.get_ident()):
            self.claim()
        guard.enter()
        try:
            try:
                if self._batch is not None:
                    self._batch.complete()
            finally:
                self._closed = True
                with self._xmit_lock:
                    pass  # a redirect of another thread that came before is through; the next sees `_closed`
                try:
                    self.napi.close()
                finally:
                    try:
                        self._close()
                    finally:
                        self.rxq.unreg()
                        guard.uninstall()
        finally:
            guard.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=1, source=self)
            self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self.name} queue {self.queue}{state}>"

    def _finish(self, batch: XdpBatch) -> None:
        if self._batch is batch:
            self._batch = None
        try:
            carry_out(self, batch)
        finally:
            self._flush()  # also when another queue's driver raised: this one's frames are posted

    def _first_poll(self) -> None:
        if self._owner:
            me = threading.get_ident()
            raise WrongThreadError(f"{self!r} is polled by thread {self._owner}, not by {me}; claim() moves it")
        self.claim()

    def _begin(self, handler: Callable[[XdpBatch], object] | None) -> None:
        if self._closed:
            raise QueueClosedError(f"{self!r} is closed")
        me, runner = threading.get_ident(), self.napi.owner
        if runner not in (0, me):
            raise WrongThreadError(f"{self!r} is run by thread {runner}, not by {me}")
        if runner == 0:
            self.claim()
        self._handler = handler
        self.napi.schedule()

    def _napi_poll(self, budget: int) -> int:
        batch = self.poll(budget)
        if batch is None:
            return 0
        n = len(batch)
        if self._handler is not None:
            try:
                self._handler(batch)
            finally:
                batch.complete()
        return n

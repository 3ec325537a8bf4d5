# SPDX-License-Identifier: MIT
"""Threads for several queues: one for each, as the kernel's threaded NAPI has, or fewer, each with a poll list.

It starts, pins, stops and joins; what is done with frames is the handlers' business, and a queue of any driver will do.
Invariant: when `join` returns, no thread polls any more, every batch is completed, every queue belongs to the caller,
and what a thread raised has been raised here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Self

from pagepool.drivers.run_together import Handler, run_together
from pagepool.drivers.rx_queue import RxQueue
from pagepool.napi import NAPI_POLL_WEIGHT

__all__ = ["Handler", "QueueThreads", "run_queues"]

_Group = Sequence[tuple[RxQueue, Handler]]


class QueueThreads:
    """One thread per queue, or as many as told.

    Parameters
    ----------
    queues : iterable of RxQueue
        Open, each once, of any drivers. They stay open.
    handler : callable, or sequence of callables
        ``handler(batch)`` for every batch, in the thread of the batch's queue; one for all, or one for each queue.
    threads : int, optional
        How many; queue ``i`` goes to thread ``i % threads``. By default one for each queue. With a GIL, one thread for
        all does more where frames are only looked at in Python, by more than 500 at a time; `docs/forwarding.md` has
        the figures.
    cpus : sequence of int, optional
        The CPU that each thread is to stay on; by default the scheduler chooses.
    budget : int
        Frames per batch at most.
    busy_poll_us : float
        Microseconds to poll without a frame before sleeping; ``math.inf`` for never sleeping.

    Raises
    ------
    ValueError
        No queue, one twice, handlers or CPUs that are too many or too few, or a CPU that this process may not use.

    Notes
    -----
    As a context manager it starts at the top of the block and stops at its end. Threads end when `stop` is called, when
    their queue will never have a frame again, or when one of them raises: then all end, and `join` raises it.

    Context: made and joined by one thread; `stop` from any thread, also from a handler.
    """

    def __init__(
        self,
        queues: Iterable[RxQueue],
        handler: Handler | Sequence[Handler],
        *,
        threads: int | None = None,
        cpus: Sequence[int] | None = None,
        budget: int = NAPI_POLL_WEIGHT,
        busy_poll_us: float = 0.0,
    ) -> None:
        self.queues = list(queues)
        self._handlers = [handler] * len(self.queues) if callable(handler) else list(handler)
        self._nr_threads = len(self.queues) if threads is None else threads
        self._cpus: list[int | None] = [None] * self._nr_threads if cpus is None else list(cpus)
        self._check()
        self._budget = budget
        self._busy_poll_us = busy_poll_us
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._stops: list[threading.Event] = []  # of each thread: without a GIL, all asking one is slow
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._running = 0
        self._frames_before = self._frames_now()

    def start(self) -> None:
        """Start the threads.

        Raises
        ------
        RuntimeError
            They were started and not joined, or the system has no more threads; then none is left running.
        """
        if self._threads:
            raise RuntimeError("these threads are running already, or nobody has joined them")
        self._stops = [threading.Event() for _ in self._cpus]
        self._ended.clear()
        self._failures = []
        self._frames_before = self._frames_now()
        self._running = self._nr_threads
        pairs = list(zip(self.queues, self._handlers, strict=True))
        for number, (cpu, stop) in enumerate(zip(self._cpus, self._stops, strict=True)):
            group = pairs[number :: self._nr_threads]
            name = ", ".join(queue.napi.name for queue, _ in group)
            thread = threading.Thread(target=self._work, args=(group, cpu, stop), name=name, daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except BaseException:  # no more threads, or Ctrl-C
                self._wind_up()
                raise

    def stop(self) -> None:
        """Have every thread end after the batch in hand; does not wait. Context: any thread."""
        for stop in self._stops:
            stop.set()
        for queue in self.queues:
            queue.napi.schedule()  # it wakes, polls once more, and looks

    def wait(self, timeout: float | None = None) -> bool:
        """Wait `timeout` seconds at most for all threads to end; return whether they have. Raises nothing of theirs."""
        return not self._threads or self._ended.wait(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all threads have ended by themselves or after `stop`.

        Parameters
        ----------
        timeout : float, optional
            Seconds at most.

        Returns
        -------
        bool
            Whether they have. Then the queues belong to the calling thread.

        Raises
        ------
        BaseException
            What the first thread that failed raised; a note on it says which queue's, and what others raised.
        """
        if not self.wait(timeout):
            return False
        self._wind_up()
        failures, self._failures = self._failures, []
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(f"and then {type(other).__name__}: {other}")
            raise first
        return True

    def run(self, seconds: float | None = None) -> int:
        """Start, wait, stop, join.

        Parameters
        ----------
        seconds : float, optional
            Longest time; by default until the threads end by themselves, or Ctrl-C.

        Returns
        -------
        int
            Frames received by all queues.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C in the main thread, after all threads have ended.
        BaseException
            What a thread raised, see `join`.
        """
        try:
            self.start()
            self.wait(seconds)
        finally:
            self._wind_up()
        self.join()
        return self.frames

    @property
    def frames(self) -> int:
        """int : frames of completed batches since the start, of all queues."""
        return self._frames_now() - self._frames_before

    @property
    def is_running(self) -> bool:
        """bool : whether any thread still polls."""
        return bool(self._threads) and not self._ended.is_set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._wind_up()
        if kind is None:
            self.join()

    # -- in the threads ----------------------------------------------------------------------------------------------

    def _work(self, group: _Group, cpu: int | None, stop: threading.Event) -> None:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})  # of this thread alone
            run_together(group, stop.is_set, budget=self._budget, busy_poll_us=self._busy_poll_us)
        except BaseException as error:
            error.add_note(f"in the thread of {', '.join(repr(queue) for queue, _ in group)}")
            with self._lock:
                self._failures.append(error)
            self.stop()
        finally:
            with self._lock:
                self._running -= 1
                last = self._running <= 0
            if last:
                self._ended.set()

    # -- the rest ----------------------------------------------------------------------------------------------------

    def _wind_up(self) -> None:
        """Stop, wait for the threads, and take the queues over."""
        if not self._threads:
            return
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()
        self._threads = []
        for queue in self.queues:
            if not queue.closed and queue.napi.owner == 0:  # else somebody else runs it, and ours was refused
                queue.claim()

    def _frames_now(self) -> int:
        return sum(queue.xdp_stats.rx_frames for queue in self.queues)

    def _check(self) -> None:
        n = len(self.queues)
        if n == 0 or len({id(queue) for queue in self.queues}) < n:
            raise ValueError(f"{n} queues: at least one, and each once; a queue has one owner")
        if len(self._handlers) != n:
            raise ValueError(f"queues: {n}, handlers: {len(self._handlers)}; give one for all, or one for each")
        if not 1 <= self._nr_threads <= n:
            raise ValueError(f"threads: {self._nr_threads}, and queues: {n}; give 1 to {n}")
        if len(self._cpus) != self._nr_threads:
            raise ValueError(f"threads: {self._nr_threads}, CPUs: {len(self._cpus)}; give one for each")
        usable = os.sched_getaffinity(0)
        for cpu in self._cpus:
            if cpu is not None and cpu not in usable:
                raise ValueError(f"CPU {cpu}: this process may use {', '.join(map(str, sorted(usable)))}")


def run_queues(
    queues: Iterable[RxQueue],
    handler: Handler | Sequence[Handler],
    *,
    seconds: float | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    budget: int = NAPI_POLL_WEIGHT,
    busy_poll_us: float = 0.0,
) -> int:
    """Poll queues, each by a thread of its own or as told, until the time is up, an exception, or Ctrl-C.

    Parameters are those of `QueueThreads` and of its `run`; returns the frames received.
    """
    how: dict[str, Any] = {"threads": threads, "cpus": cpus, "budget": budget, "busy_poll_us": busy_poll_us}
    return QueueThreads(queues, handler, **how).run(seconds)

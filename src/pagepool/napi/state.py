# SPDX-License-Identifier: MIT
"""Whether a NAPI instance is scheduled, and the sleep of a thread that waits until it is.

The bits of the kernel's ``napi_struct.state`` and the doorbell, without a poll. Invariant: a `schedule` or a `stop` is
seen by the thread that is about to sleep, or wakes it: none is lost.
"""

from __future__ import annotations

import threading
import time

from pagepool.napi.sleeper import Sleeper, WokenBy
from pagepool.napi.stats import NapiStats

__all__ = ["NapiState"]


class NapiState:
    """The part of `Napi` that other threads may touch.

    Parameters
    ----------
    fd : int or None
        Becomes readable when the device has work; watched only while asleep.

    Context: `schedule` and `stop` from any thread; the rest by the instance's owner.
    """

    def __init__(self, fd: int | None) -> None:
        self.stats = NapiStats()
        self._fd = fd
        self._lock = threading.Lock()
        self._scheduled = False
        self._missed = False
        self._completed = False  # by the poll function itself, in the poll in progress
        self._stop = False
        self._sleeping = False
        self._closed = False
        self._timer: float | None = None
        self._sleeper: Sleeper | None = None

    @property
    def is_scheduled(self) -> bool:
        """bool : whether the next run polls before it sleeps."""
        return self._scheduled

    @property
    def is_stopping(self) -> bool:
        """bool : whether `stop` was called and no run or wait has obeyed it yet."""
        return self._stop

    def schedule(self) -> bool:
        """Ask for a poll; the kernel's ``napi_schedule``.

        Returns
        -------
        bool
            True if the instance was not scheduled before. False if it was (the call is remembered), or is
            closed.

        Context: any thread, or a callback inside the poll; never blocks for long.
        """
        with self._lock:
            if self._closed:
                return False
            if self._scheduled:
                self._missed = True
                return False
            self._scheduled = True
            wake = self._sleeping
        if wake:
            self._wake()
        return True

    def schedule_after(self, seconds: float) -> None:
        """Ask for a poll after some time, if nothing else asks before; the kernel's timer of a NAPI instance.

        Context: the owner, as a rule inside the poll. One timer: a later call replaces it; the next poll ends it.
        """
        self._timer = time.monotonic() + seconds

    def complete_done(self, work_done: int) -> bool:
        """Say that the device is drained; the kernel's ``napi_complete_done``.

        Parameters
        ----------
        work_done : int
            Frames done in this poll; only for the reader, as in the kernel without GRO.

        Returns
        -------
        bool
            True: the instance is idle, wake-ups count again. False: it was scheduled meanwhile and is polled
            again.
        """
        with self._lock:
            self._completed = True
            if self._missed:
                self._missed = False
                self.stats.missed += 1
                return False
            self._scheduled = False
            self.stats.completions += 1
            return True

    def stop(self) -> None:
        """End the run in progress, or the next one, after the poll in progress. Context: any thread."""
        with self._lock:
            self._stop = True
            wake = self._sleeping
        if wake:
            self._wake()

    def _sleep(self, timeout: float | None) -> None:
        if not self._lie_down():
            return
        woken_by = WokenBy.TIMEOUT
        try:
            woken_by = self._sleeper.sleep(self._at_most(timeout)) if self._sleeper is not None else WokenBy.WAKE
        finally:
            self._get_up(woken_by)

    # In parts, for a thread that sleeps for several instances at once.

    def _lie_down(self) -> bool:
        """Say that the thread is about to sleep; False if it must not. Pair with `_get_up`."""
        if self._sleeper is None:
            try:
                self._sleeper = Sleeper(self._fd)
            except OSError:
                if self._closed:  # by another thread, and the device's descriptor with it
                    return False
                raise
        with self._lock:
            # Pairs with the lock in `schedule` and `stop`: either they see _sleeping and wake, or this sees
            # them.
            if self._scheduled or self._stop:
                return False
            self._sleeping = True
        self.stats.sleeps += 1
        return True

    def _at_most(self, timeout: float | None) -> float | None:
        """Return how long to sleep, in seconds, with the timer in mind."""
        if self._timer is None:
            return timeout
        left = self._timer - time.monotonic()
        return left if timeout is None else min(timeout, left)

    def _get_up(self, woken_by: WokenBy) -> None:
        """Say that the sleep is over, and what ended it."""
        with self._lock:
            self._sleeping = False
        if woken_by is WokenBy.DEVICE:
            self.stats.fd_events += 1
            self.schedule()
        elif woken_by is WokenBy.WAKE:
            self.stats.wakeups += 1
        else:
            self.stats.timeouts += woken_by is WokenBy.TIMEOUT
            if self._timer is not None and time.monotonic() >= self._timer:
                self._timer = None
                self.schedule()

    def _close_sleeper(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            sleeper.close()

    def _wake(self) -> None:
        sleeper = self._sleeper
        if sleeper is not None:
            sleeper.wake()

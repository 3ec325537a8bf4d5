# SPDX-License-Identifier: MIT
"""A poller with the kernel's NAPI rules: it decides when a device is polled, never what is done with frames.

It knows a function that takes a budget and returns work done, perhaps a file descriptor, and nothing else.
Invariant: between `schedule` and the `complete_done` that answers True the instance is scheduled, and a
scheduled instance is polled before its thread sleeps: no wake-up is lost, whichever thread it comes from.
"""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Callable
from typing import Protocol

from pagepool.errors import WrongThreadError
from pagepool.napi.state import NapiState

__all__ = ["NAPI_POLL_WEIGHT", "Napi"]

NAPI_POLL_WEIGHT = 64

_napi_ids = itertools.count(1)


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Napi(NapiState):
    """One NAPI instance.

    Parameters
    ----------
    poll : callable
        ``poll(budget) -> work_done``, both counted in frames. It may call `complete_done` itself, as a kernel
        driver does; if it returns less than its budget and has not, the instance does.
    weight : int
        Default budget of a poll, at least 1; 64 in the kernel.
    fd : int, object with ``fileno()``, or None
        Becomes readable when the device has work (an AF_XDP socket, an eventfd); watched only while asleep.
    name : str
        For reports.

    Attributes
    ----------
    id : int
        Of this instance, from 1, unique in this process.
    stats : NapiStats

    Notes
    -----
    The rules: ``work_done == budget`` keeps it scheduled and it is polled again; ``work_done < budget``
    completes it and the device's wake-ups count again. A `schedule` that comes while it is scheduled is
    remembered and keeps the next completion from happening (the kernel's NAPI_STATE_MISSED).

    Context: `schedule` and `stop` from any thread; the rest by one thread at a time, its owner while `run` or
    `poll` lasts.
    """

    def __init__(
        self,
        poll: Callable[[int], int],
        weight: int = NAPI_POLL_WEIGHT,
        fd: int | _HasFileno | None = None,
        *,
        name: str = "",
    ) -> None:
        if weight < 1:
            raise ValueError(f"weight {weight}: a poll needs a budget of at least 1")
        super().__init__(fd if fd is None or isinstance(fd, int) else fd.fileno())
        self.id = next(_napi_ids)
        self.name = name or f"napi-{self.id}"
        self.weight = weight
        self._poll = poll
        self._owner = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "scheduled" if self._scheduled else "idle"
        return f"<Napi {self.name}, weight {self.weight}, {state}>"

    @property
    def owner(self) -> int:
        """int : ident of the thread inside `run` or `poll`, 0 if none."""
        return self._owner

    def poll(self, budget: int | None = None) -> int:
        """Poll once, scheduled or not; unscheduled it is a busy poll.

        Parameters
        ----------
        budget : int, optional
            Frames at most; the weight by default.

        Returns
        -------
        int
            Work done.

        Raises
        ------
        WrongThreadError
            While another thread polls or runs this instance.
        """
        nested = self._owner == threading.get_ident()
        try:
            self._take()
            return self._poll_once(self.weight if budget is None else budget)
        finally:
            self._release(nested)

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        seconds: float | None = None,
        budget: int | None = None,
        busy_poll_us: float = 0.0,
    ) -> int:
        """Poll and sleep until told to stop; this thread is the owner meanwhile.

        Parameters
        ----------
        until : callable, optional
            Asked after every poll and every wake-up; True ends the run.
        seconds : float, optional
            Longest time to run.
        budget : int, optional
            Frames per poll; the weight by default.
        busy_poll_us : float
            Microseconds to go on polling without work before sleeping, 0 for none, ``math.inf`` for never
            sleeping.

        Returns
        -------
        int
            Work done in this run.

        Raises
        ------
        WrongThreadError
            While another thread runs this instance.
        ValueError
            If it is closed.

        Notes
        -----
        An exception of the poll function, and Ctrl-C, end the run and leave the instance scheduled: a later
        run goes on where this one was. A `stop` that comes when nothing runs ends the next run at its start.
        """
        nested = self._owner == threading.get_ident()
        try:
            self._take()
            try:
                return self._run(until, seconds, self.weight if budget is None else budget, busy_poll_us * 1e3)
            finally:
                self._stop = False
        finally:
            self._release(nested)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until scheduled; for a loop that polls by itself.

        Parameters
        ----------
        timeout : float, optional
            Seconds at most.

        Returns
        -------
        bool
            True if it is scheduled. False after the timeout, or a `stop`, which is thereby obeyed.
        """
        nested = self._owner == threading.get_ident()
        try:
            self._take()
            deadline = None if timeout is None else time.monotonic() + timeout
            while not self._scheduled:
                left = None if deadline is None else deadline - time.monotonic()
                if self._stop or (left is not None and left <= 0):
                    break
                self._sleep(left)
            stopped, self._stop = self._stop, False
            return self._scheduled and not stopped
        finally:
            self._release(nested)

    def close(self) -> None:
        """Stop for good and close the descriptors made here. Idempotent; the device's `fd` stays open."""
        with self._lock:
            self._closed = self._stop = True
            self._scheduled = self._missed = False
            asleep = self._sleeping
        if asleep:
            self._wake()
        elif not self._owner:
            self._close_sleeper()  # else the run does when it ends

    def _run(self, until: Callable[[], bool] | None, seconds: float | None, budget: int, idle_ns: float) -> int:
        deadline = None if seconds is None else time.monotonic_ns() + int(seconds * 1e9)
        total = 0
        last_work_ns = time.monotonic_ns()
        while not self._stop:
            now_ns = time.monotonic_ns() if deadline is not None or idle_ns else 0
            if self._scheduled or (idle_ns and now_ns - last_work_ns < idle_ns):
                work = self._poll_once(budget)
                total += work
                if work:
                    last_work_ns = now_ns
            else:
                self._sleep(None if deadline is None else (deadline - now_ns) / 1e9)
                if idle_ns:
                    last_work_ns = time.monotonic_ns()  # awake: spin again before the next sleep
            if (until is not None and until()) or (deadline is not None and time.monotonic_ns() >= deadline):
                break
        return total

    def _poll_once(self, budget: int) -> int:
        stats = self.stats
        if not self._scheduled:
            with self._lock:
                self._scheduled = not self._closed
            stats.busy_polls += 1
        self._completed = False
        self._timer = None
        work = int(self._poll(budget))
        stats.polls += 1
        stats.work += work
        if work >= budget:
            stats.full_polls += 1
            if work > budget:
                self._report_over_budget(work, budget)
            return work
        if work == 0:
            stats.empty_polls += 1
        if not self._completed:
            self.complete_done(work)
        return work

    def _take(self) -> None:
        """Become the owner, or be it already: a poll inside a run."""
        me = threading.get_ident()
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.name} is closed")
            if self._owner not in (0, me):
                raise WrongThreadError(f"{self.name} is run by thread {self._owner}, not by {me}")
            self._owner = me

    def _release(self, nested: bool) -> None:
        """Stop being the owner, unless a caller further out is; right also when `_take` raised or was interrupted."""
        if not nested and self._owner == threading.get_ident():
            self._owner = 0
            if self._closed:
                self._close_sleeper()

    def _report_over_budget(self, work: int, budget: int) -> None:
        self.stats.over_budget += 1
        if self.stats.over_budget == 1:
            warnings.warn(
                f"{self.name}: the poll function claims {work} of a budget of {budget}",
                RuntimeWarning,
                stacklevel=4,
            )

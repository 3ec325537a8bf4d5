# SPDX-License-Identifier: MIT
"""One thread that runs several NAPI instances: the kernel's ``poll_list`` of a CPU, and its ``net_rx_action``.

Those that are scheduled are polled in turn, each with its budget; when none is, the thread sleeps for all of them at
once. Invariant: as for one instance, a wake-up of any of them is not lost, and none waits for another's device.

Source: the kernel's Documentation/networking/napi.rst.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pagepool.napi.napi import Napi
from pagepool.napi.sleeper import WokenBy

__all__ = ["PollList"]


class PollList:
    """Several instances on one thread.

    Parameters
    ----------
    napis : sequence of Napi
        At least one; polled in this order.

    Notes
    -----
    Context: `run` by one thread, their owner meanwhile; each may be scheduled and stopped from any. An instance that is
    stopped or closed leaves the list, the others go on.
    """

    def __init__(self, napis: Sequence[Napi]) -> None:
        self._napis = list(napis)

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        done: Callable[[Napi], bool] | None = None,
        budget: int | None = None,
        busy_poll_us: float = 0.0,
    ) -> int:
        """Poll and sleep until told to stop.

        Parameters
        ----------
        until : callable, optional
            Asked after every poll and every wake-up; True ends the run.
        done : callable, optional
            Asked about an instance after its poll; True takes it off the list.
        budget : int, optional
            Frames per poll; each one's weight by default.
        busy_poll_us : float
            Microseconds to go on polling without work before sleeping, ``math.inf`` for never sleeping.

        Returns
        -------
        int
            Work done by all of them.

        Raises
        ------
        WrongThreadError
            Another thread runs one of them; none has been polled.

        Notes
        -----
        An exception of a poll function ends the run and leaves every instance as it is: scheduled where it was.
        """
        with ExitStack() as owned:
            for napi in self._napis:
                owned.callback(napi._release, napi.owner == threading.get_ident())
                napi._take()
            try:
                return self._run(until, done, budget, busy_poll_us / 1e6)
            finally:
                for napi in self._napis:
                    napi._stop = False

    def _run(
        self,
        until: Callable[[], bool] | None,
        done: Callable[[Napi], bool] | None,
        budget: int | None,
        idle_s: float,
    ) -> int:
        active, total = list(self._napis), 0
        last_work = time.monotonic()
        while active:
            now = time.monotonic() if idle_s else 0.0
            busy = bool(idle_s) and now - last_work < idle_s
            polled = False
            for napi in list(active):
                if napi._stop:
                    active.remove(napi)
                elif napi._scheduled or busy:
                    polled = True
                    work = napi._poll_once(napi.weight if budget is None else budget)
                    total += work
                    if work:
                        last_work = now
                    if until is not None and until():
                        return total
                    if done is not None and done(napi):
                        active.remove(napi)
            if not polled and active:
                _sleep_for_all(active)
                last_work = time.monotonic() if idle_s else 0.0
                if until is not None and until():
                    return total
        return total


def _sleep_for_all(napis: Sequence[Napi]) -> None:
    """Sleep until one of them is scheduled or stopped, its device has work, or its timer is due."""
    down: list[Napi] = []
    try:
        for napi in napis:
            if not napi._lie_down():
                return
            down.append(napi)
        timeout: float | None = None
        poller = select.poll()
        for napi in down:
            timeout = napi._at_most(timeout)
            if napi._sleeper is None:  # closed by another thread just now
                return
            poller.register(napi._sleeper.fileno(), select.POLLIN)
        poller.poll(None if timeout is None else max(timeout, 0.0) * 1e3)
    finally:
        found = [WokenBy.WAKE if napi._sleeper is None else napi._sleeper.sleep(0) for napi in down]
        nobody = all(woken_by is WokenBy.TIMEOUT for woken_by in found)
        for napi, woken_by in zip(down, found, strict=True):
            napi._get_up(WokenBy.OTHER if woken_by is WokenBy.TIMEOUT and not nobody else woken_by)

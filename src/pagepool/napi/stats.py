# SPDX-License-Identifier: MIT
"""Counters of one NAPI instance; plain ints, written by the thread that runs it, readable by anyone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["NapiStats"]


@dataclass(slots=True)
class NapiStats:
    """What an instance did.

    Attributes
    ----------
    polls, work : int
        Calls of the poll function, and the frames (or whatever it counts) they did.
    empty_polls, full_polls : int
        Polls that did nothing, and polls that used the whole budget and so stayed scheduled.
    busy_polls : int
        Polls of an instance that nobody had scheduled (spinning, or a bare `Napi.poll`).
    completions, missed : int
        Times it was completed and re-armed, and times that failed because it was scheduled meanwhile.
    sleeps, wakeups, fd_events, timeouts : int
        Sleeps in epoll and how they ended: woken by another thread, by the device's file descriptor, or
        neither.
    over_budget : int
        Polls that claimed more work than their budget, a bug of the poll function.
    """

    polls: int = 0
    work: int = 0
    empty_polls: int = 0
    full_polls: int = 0
    busy_polls: int = 0
    completions: int = 0
    missed: int = 0
    sleeps: int = 0
    wakeups: int = 0
    fd_events: int = 0
    timeouts: int = 0
    over_budget: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name, in the order above."""
        return asdict(self)

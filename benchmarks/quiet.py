# SPDX-License-Identifier: MIT
"""Keep the rest of the machine out of the figures as far as this process may.

Three means: the measuring thread stays on one CPU; the session's scheduling group gets the highest weight (where
autogrouping is on, ``nice`` does nothing across sessions); and where several threads share CPUs, ``real_time`` says who
runs before whom. All are undone at the end. None keeps caches and the memory bus to ourselves.

Source: sched(7), "The autogroup feature".
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Quiet", "quiet", "rank", "real_time"]

_AUTOGROUP = Path("/proc/self/autogroup")
_HIGHEST = -20


@dataclass
class Quiet:
    """What was done.

    Attributes
    ----------
    cpu : int
        Where this thread runs.
    others : list of int
        The other CPUs that this process may use, for other threads.
    autogroup_nice : int or None
        Nice value of the session's group; None where there is none or it may not be changed.
    """

    cpu: int
    others: list[int] = field(default_factory=list)
    autogroup_nice: int | None = None


@contextmanager
def quiet() -> Iterator[Quiet]:
    """Pin the calling thread to the last CPU it may use and raise the session's group."""
    before = os.sched_getaffinity(0)
    cpu = max(before)
    found = Quiet(cpu, sorted(before - {cpu}) or [cpu])
    nice = _set_autogroup(_HIGHEST)
    if nice is not None:
        found.autogroup_nice = _HIGHEST
    os.sched_setaffinity(0, {cpu})
    try:
        yield found
    finally:
        os.sched_setaffinity(0, before)
        if nice is not None:
            _set_autogroup(nice)


@contextmanager
def real_time(priority: int) -> Iterator[bool]:
    """Run the calling thread before all others; not the threads that it starts, which `rank` is for.

    Parameters
    ----------
    priority : int
        1 to 99; the higher one runs, whatever the scheduler thinks fair.

    Yields
    ------
    bool
        Whether it is allowed; if not, nothing is changed.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


def rank(threads: Iterable[threading.Thread], priority: int) -> None:
    """Give threads of this process a real-time priority of their own; nothing where that is not allowed."""
    for thread in threads:
        try:
            os.sched_setscheduler(thread.native_id or 0, os.SCHED_FIFO, os.sched_param(priority))
        except PermissionError:
            return


def _set_autogroup(nice: int) -> int | None:
    """Set the nice value of the session's group; return the old one, or None if it could not be set."""
    try:
        found = re.search(r"nice (-?\d+)", _AUTOGROUP.read_text())
        _AUTOGROUP.write_text(str(nice))
    except OSError:
        return None
    return int(found[1]) if found else None

# SPDX-License-Identifier: MIT
"""Keep the rest of the machine out of the figures as far as this process may.

Two means: the measuring thread stays on one CPU, and the session's scheduling group gets the highest weight
(where autogrouping is on, ``nice`` does nothing across sessions). Both are undone at the end. Neither keeps
caches and the memory bus to ourselves.

Source: sched(7), "The autogroup feature".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Quiet", "quiet"]

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


def _set_autogroup(nice: int) -> int | None:
    """Set the nice value of the session's group; return the old one, or None if it could not be set."""
    try:
        found = re.search(r"nice (-?\d+)", _AUTOGROUP.read_text())
        _AUTOGROUP.write_text(str(nice))
    except OSError:
        return None
    return int(found[1]) if found else None

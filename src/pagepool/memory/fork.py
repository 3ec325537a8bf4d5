# SPDX-License-Identifier: MIT
"""What must be put right in a child process after fork(2): locks that a thread of the parent held.

Weak: it keeps nothing alive. Nothing is registered before the first object asks for it.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something with a lock."""

    def after_fork_in_child(self) -> None:
        """Make a new lock; the old one may belong to a thread that the child does not have."""


_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def watch(thing: ForkAware) -> None:
    """Have ``thing.after_fork_in_child()`` called in every child that is forked while `thing` lives."""
    _watched.add(thing)
    _register()


@functools.cache
def _register() -> None:
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    for thing in list(_watched):
        thing.after_fork_in_child()

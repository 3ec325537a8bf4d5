# SPDX-License-Identifier: MIT
"""What the command does with the frames of one queue: count them, write them down, give them their verdict.

No thread and no queue of its own: `pagepool.drivers.queue_threads` calls it. Invariant: a frame is counted once, and is
in the capture before anybody else can have its page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from pagepool.xdp import XdpBatch

__all__ = ["ACTIONS", "Sink", "Tap", "Verdict"]

Verdict = Callable[[XdpBatch], object]

#: Verdicts by their name on the command line.
ACTIONS: dict[str, Verdict] = {
    "drop": lambda batch: batch.drop(),
    "pass": lambda batch: batch.pass_(),
    "tx": lambda batch: batch.tx(),
}


class Sink(Protocol):
    """What sees frames before their verdict."""

    def interface(self, name: str) -> int:
        """Take note of a queue; return its number."""

    def write(self, interface: int, batch: XdpBatch) -> None:
        """See the frames of a batch of that queue. Context: the queue's thread; several at once."""


class Tap:
    """The handler of one queue's batches.

    Parameters
    ----------
    name : str
        Of the queue, for the capture.
    verdict : callable
        Gives the frames of a batch theirs.

    Attributes
    ----------
    frames, size_bytes : int
        Received so far; written by the queue's thread, readable by anyone.
    """

    def __init__(self, name: str, verdict: Verdict) -> None:
        self.name = name
        self.frames = 0
        self.size_bytes = 0
        self._verdict = verdict
        self._sinks: list[tuple[Callable[[int, XdpBatch], None], int]] = []

    def show(self, sink: Sink) -> None:
        """Let a sink see every frame before its verdict, after the sinks that do already. Before the first frame."""
        self._sinks.append((sink.write, sink.interface(self.name)))

    def __call__(self, batch: XdpBatch) -> None:
        self.frames += len(batch)
        self.size_bytes += int(np.add.reduce(batch.lengths))
        for write, interface in self._sinks:
            write(interface, batch)
        self._verdict(batch)

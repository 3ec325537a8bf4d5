# SPDX-License-Identifier: MIT
"""What the command does with the frames of one queue: count them, write them down, give them their verdict.

No thread and no queue of its own: `pagepool.drivers.queue_threads` calls it. Invariant: a frame is counted once, and is
in the capture before anybody else can have its page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pagepool.drivers.capture import PcapngWriter
from pagepool.xdp import XdpBatch

__all__ = ["ACTIONS", "CaptureFile", "Sink", "Tap", "Verdict"]

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


class CaptureFile:
    """A pcapng file that several taps write to, each as an interface of its own."""

    def __init__(self, path: str) -> None:
        self._writer = PcapngWriter(path)
        self._lock = threading.Lock()
        self.path = path

    @property
    def frames(self) -> int:
        """int : frames written."""
        return self._writer.frames

    def interface(self, name: str) -> int:
        """Describe an interface; return its number."""
        with self._lock:
            return self._writer.add_interface(name)

    def write(self, interface: int, batch: XdpBatch) -> None:
        """Write the frames of a batch."""
        with self._lock:
            self._writer.write_frames(
                [batch.frame(i) for i in range(len(batch))],
                batch.came_ns().tolist(),
                interface=interface,
                outbound=False,
            )

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Tap:
    """The handler of one queue's batches.

    Parameters
    ----------
    name : str
        Of the queue, for the capture.
    verdict : callable
        Gives the frames of a batch theirs.
    sinks : sequence of Sink
        See every frame before its verdict, in this order.

    Attributes
    ----------
    frames, size_bytes : int
        Received so far; written by the queue's thread, readable by anyone.
    """

    def __init__(self, name: str, verdict: Verdict, sinks: Sequence[Sink] = ()) -> None:
        self.frames = 0
        self.size_bytes = 0
        self._verdict = verdict
        self._sinks = [(sink.write, sink.interface(name)) for sink in sinks]

    def __call__(self, batch: XdpBatch) -> None:
        self.frames += len(batch)
        self.size_bytes += int(np.add.reduce(batch.lengths))
        for write, interface in self._sinks:
            write(interface, batch)
        self._verdict(batch)

# SPDX-License-Identifier: MIT
"""A thread that polls one queue, gives every frame the one verdict, and counts.

One thread per queue: the thread is the owner of the queue's pool, and Ctrl-C reaches the main thread, never a poll.
Invariant: when `join` returns the last batch is completed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from pagepool.drivers.capture import PcapngWriter
from pagepool.drivers.rx_queue import RxQueue
from pagepool.xdp import XdpBatch

__all__ = ["ACTIONS", "CaptureFile", "Poller"]

_BUDGET = 64
_LOOK_S = 0.05  # how long a queue without frames is left alone before it looks whether to stop

#: Verdicts by their name on the command line.
ACTIONS: dict[str, Callable[[XdpBatch], None]] = {
    "drop": lambda batch: batch.drop(),
    "pass": lambda batch: batch.pass_(),
    "tx": lambda batch: batch.tx(),
}


class CaptureFile:
    """A pcapng file that several pollers write to, each as an interface of its own."""

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
            self._writer.write_frames([batch.frame(i) for i in range(len(batch))], interface=interface, outbound=False)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Poller:
    """Receives from one queue until told to stop.

    Parameters
    ----------
    queue : RxQueue
        Of any driver.
    action : str
        A key of `ACTIONS`.
    stop : threading.Event
        Ends the thread.
    capture : CaptureFile, optional
        Gets every frame before its verdict.

    Attributes
    ----------
    frames, size_bytes : int
        Received so far; written by the thread, readable by anyone.
    failure : BaseException or None
        What ended the thread early; it has set `stop` then.
    """

    def __init__(self, queue: RxQueue, action: str, stop: threading.Event, capture: CaptureFile | None = None) -> None:
        self.frames = 0
        self.size_bytes = 0
        self.failure: BaseException | None = None
        self._queue = queue
        self._verdict = ACTIONS[action]
        self._stop = stop
        self._capture = capture
        self._thread = threading.Thread(target=self._run, name=f"rx-{queue.name}-{queue.queue}", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has completed its last batch."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            interface = 0
            if self._capture is not None:
                interface = self._capture.interface(f"{self._queue.name} queue {self._queue.queue}")
            while not self._stop.is_set():
                self._receive(interface)
        except BaseException as error:
            self.failure = error
            self._stop.set()

    def _receive(self, interface: int) -> None:
        verdict, capture, stop, add = self._verdict, self._capture, self._stop, np.add.reduce
        for batch in self._queue.poll_forever(_BUDGET, timeout=_LOOK_S):
            with batch:
                self.frames += len(batch)
                self.size_bytes += int(add(batch.lengths))
                if capture is not None:
                    capture.write(interface, batch)
                verdict(batch)
            if stop.is_set():
                return

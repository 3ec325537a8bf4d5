# SPDX-License-Identifier: MIT
"""A window of live frames: threads that poll put record batches in, one query reads them as an Arrow stream.

It runs no query and has no thread. Invariant: a frame that a poller offers is in exactly one window, or missed and
counted; what waits here is bounded, by the pages that Arrow may hold of a pool and by `_MOST_WAITING` frames.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from pagepool.cli.failure import CannotError
from pagepool.integrations.arrow import ALL_COLUMNS, ArrowBatch, to_arrow
from pagepool.integrations.arrow._c_data import stream_capsule
from pagepool.integrations.arrow.backlog import Backlog
from pagepool.integrations.arrow.record_batch import make_schema
from pagepool.xdp import XdpBatch

__all__ = ["Window", "parse_window"]

_MOST_WAITING = 1 << 16
_MOST_DIGITS = 18
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_window(text: str) -> tuple[float | None, int | None]:
    """Return seconds or frames: ``1s``, ``500ms``, ``2m``, or ``10000``.

    Raises
    ------
    CannotError
        It is neither.
    """
    for unit, step in _UNITS_S.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal() and float(number) > 0:
            return float(number) * step, None
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) > 0:
        return None, int(text)
    raise CannotError(f"--window {text}: it is a time, such as 1s or 500ms, or a number of frames, such as 10000")


class Window:
    """Where frames wait for a query.

    Parameters
    ----------
    seconds, frames : float, int, optional
        How long a window is.
    shared : bool
        Frames get a verdict that needs their page; else the query takes the pages.

    Attributes
    ----------
    columns : tuple of str
        What a query can ask for. Without the payload no page is held.
    taken, missed : int
        Frames of this window so far; frames since the start that were in none.
    total : int
        Frames of all windows.
    """

    def __init__(self, seconds: float | None, frames: int | None, *, shared: bool) -> None:
        self.columns: tuple[str, ...] = ALL_COLUMNS
        self.taken = self.missed = self.total = 0
        self._seconds = seconds
        self._frames = frames
        self._shared = shared
        self._waiting: deque[ArrowBatch] = deque()
        self._nr_waiting = 0
        self._changed = threading.Condition()
        self._is_open = False
        self._ended = False
        self._end = 0.0
        self._backlogs: dict[int, Backlog] = {}

    # -- the pollers' side (a sink of `Tap`) ---------------------------------------------------------------------------

    def interface(self, name: str) -> int:
        """Take note of a queue; nothing to do, a batch knows where it came from."""
        return 0

    def write(self, interface: int, batch: XdpBatch) -> None:
        """Put the frames of a batch into the window, if it is open and has room."""
        n = len(batch)
        if not self._has_room(n, batch.driver.pool):
            with self._changed:
                self.missed += n
            return
        arrow = to_arrow(batch, columns=self.columns, shared=self._shared)
        with self._changed:
            if not self._is_open:
                self.missed += n
                return
            self._waiting.append(arrow)
            self._nr_waiting += n
            self.taken += n
            self.total += n
            if self._frames is not None and self.taken >= self._frames:
                self._is_open = False
            self._changed.notify()

    def _has_room(self, n: int, pool: Any) -> bool:
        if not self._is_open or self._nr_waiting + n > _MOST_WAITING:
            return False
        if "payload" not in self.columns:
            return True
        backlog = self._backlogs.get(id(pool))
        if backlog is None:
            backlog = self._backlogs[id(pool)] = Backlog(pool)
        return backlog.room >= n

    # -- the query's side: an Arrow stream -----------------------------------------------------------------------------

    def open(self) -> None:
        """Begin a window; what is left of the last one is let go of."""
        with self._changed:
            self._clear()
            self.taken = 0
            self._end = time.monotonic() + self._seconds if self._seconds is not None else float("inf")
            self._is_open = not self._ended

    def close(self) -> None:
        """End this window and every later one; what waits is let go of. Idempotent."""
        with self._changed:
            self._ended = True
            self._is_open = False
            self._clear()
            self._changed.notify_all()

    def end(self) -> None:
        """End this window early; what waits can still be read."""
        with self._changed:
            self._ended = True
            self._is_open = False
            self._changed.notify_all()

    def _clear(self) -> None:
        self._waiting.clear()
        self._nr_waiting = 0

    def __arrow_c_schema__(self) -> object:
        return make_schema(self.columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return stream_capsule(self)

    def read_next(self) -> ArrowBatch | None:
        """Return the next record batch, when there is one; None at the window's end."""
        with self._changed:
            while not self._waiting:
                left = self._end - time.monotonic()
                if left <= 0:
                    self._is_open = False
                if not self._is_open:
                    return None
                self._changed.wait(min(left, 1.0))
            arrow = self._waiting.popleft()
            self._nr_waiting -= len(arrow)
            return arrow

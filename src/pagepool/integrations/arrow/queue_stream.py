# SPDX-License-Identifier: MIT
"""`arrow_stream`: a queue as an Arrow stream, polled by whoever reads it.

No thread and no buffer of its own: a consumer that asks for the next record batch polls the device, in its own thread.
Invariant: a frame is in a record batch, or dropped and counted; while a query is slow, frames wait in the device's
ring and are lost there, where the queue's statistics count them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pagepool.drivers.rx_queue import RxQueue
from pagepool.errors import PoolBusyError
from pagepool.integrations.arrow._c_data import stream_capsule
from pagepool.integrations.arrow.backlog import Backlog
from pagepool.integrations.arrow.columns import METADATA, check_columns
from pagepool.integrations.arrow.record_batch import ArrowBatch, make_schema, to_arrow
from pagepool.xdp import XdpBatch

__all__ = ["QueueStream", "arrow_stream"]

OnFull = Literal["raise", "drop"]
_BUSY_S = 1.0  # how long to wait for another thread to be out of the pool
_LOOK_S = 0.001  # how long to leave the device alone while there is no room


class QueueStream:
    """What `arrow_stream` returns.

    Attributes
    ----------
    frames : int
        In record batches so far.
    dropped : int
        Received and dropped, because Arrow held too many.

    Notes
    -----
    A query engine may ask for the schema several times, by streams of their own; frames begin to flow with the first
    question for data, and there is one flow: two readers at once share it.
    """

    def __init__(
        self,
        queue: RxQueue,
        columns: tuple[str, ...],
        where: Callable[[XdpBatch], Any] | None,
        budget: int,
        seconds: float | None,
        frames: int | None,
        timeout: float | None,
        backlog: Backlog,
        on_full: OnFull,
    ) -> None:
        self.columns = columns
        self.frames = 0
        self.dropped = 0
        self._queue = queue
        self._where = where
        self._budget = budget
        self._seconds = seconds
        self._most = frames
        self._timeout = timeout
        self._backlog = backlog
        self._on_full = on_full
        self._end: float | None = None

    def __arrow_c_schema__(self) -> object:
        """Return the type of every record batch as an ``arrow_schema`` capsule."""
        return make_schema(self.columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return an ``arrow_array_stream`` capsule; a requested schema is not looked at, as the protocol allows."""
        return stream_capsule(self)

    def read_next(self) -> ArrowBatch | None:
        """Receive the next record batch; None at the end.

        Raises
        ------
        ArrowBacklogError
            Arrow holds too many frames, and this stream was not told to drop.
        PoolBusyError
            Another thread polls the queue right now.

        Notes
        -----
        Context: any thread, one at a time. It becomes the owner of the queue; `claim` moves it back.
        """
        if self._end is None:
            self._end = float("inf") if self._seconds is None else time.monotonic() + self._seconds
        while (budget := self._budget_now()) and (left := self._end - time.monotonic()) > 0:
            room = self._backlog.room
            if room == 0 and self._on_full == "raise":
                raise self._backlog.error()
            batch = self._receive(min(budget, room) or budget, left)
            if batch is None:
                return None
            with batch:
                arrow = self._take(batch, room)
            if arrow is not None:
                self.frames += len(arrow)
                return arrow
        return None

    def _budget_now(self) -> int:
        return self._budget if self._most is None else min(self._budget, self._most - self.frames)

    def _receive(self, budget: int, left: float) -> XdpBatch | None:
        timeout = left if self._timeout is None else min(left, self._timeout)
        timeouts = None if timeout == float("inf") else timeout
        busy_until = time.monotonic() + _BUSY_S
        while True:
            try:
                for batch in self._queue.poll_forever(budget, timeouts):  # makes this thread the owner
                    return batch
                return None
            except PoolBusyError:  # the last owner, a thread of the same consumer, is still giving pages back
                if time.monotonic() > busy_until:
                    raise
                time.sleep(_LOOK_S)

    def _take(self, batch: XdpBatch, room: int) -> ArrowBatch | None:
        chosen = None if self._where is None else self._where(batch)
        if room == 0:
            self.dropped += len(batch.chosen(chosen))
            batch.drop()
            time.sleep(_LOOK_S)
            return None
        arrow = to_arrow(batch, chosen, columns=self.columns)
        return arrow if len(arrow) else None


def arrow_stream(
    queue: RxQueue,
    *,
    columns: Iterable[str] = METADATA,
    where: Callable[[XdpBatch], Any] | None = None,
    seconds: float | None = None,
    frames: int | None = None,
    timeout: float | None = None,
    budget: int = 1024,
    limit: int | None = None,
    on_full: OnFull = "raise",
) -> QueueStream:
    """Show a queue to Arrow libraries as a stream of record batches, without a copy.

    Parameters
    ----------
    queue : RxQueue
        Open, of any driver.
    columns : iterable of str
        Of `COLUMNS`; see `to_arrow`.
    where : callable, optional
        ``where(batch)`` returns a mask: which frames. The others are dropped, or what it has given them a verdict for.
    seconds, frames : float, int, optional
        End after so long, counted from the first question, or after so many frames; by default never.
    timeout : float, optional
        End after so many seconds without a frame.
    budget : int
        Frames per record batch at most. Many are cheaper: most of the cost is per record batch.
    limit : int, optional
        Frames of the queue's pool that Arrow may hold at once, by all streams and batches; by default half of what the
        pool can have.
    on_full : {"raise", "drop"}
        At the limit: raise `ArrowBacklogError` (the consumer sees an error of its own with the text), or drop what
        comes, count it in `dropped`, and go on as soon as pages are home.

    Returns
    -------
    QueueStream
        For ``pyarrow.RecordBatchReader.from_stream``, ``polars.DataFrame``, ``duckdb``, ...
    """
    if budget < 1:
        raise ValueError(f"budget {budget}: a record batch needs a frame at least")
    if on_full not in ("raise", "drop"):
        raise ValueError(f"on_full {on_full!r}: it is 'raise' or 'drop'")
    names = check_columns(columns)
    return QueueStream(queue, names, where, budget, seconds, frames, timeout, Backlog(queue.pool, limit), on_full)

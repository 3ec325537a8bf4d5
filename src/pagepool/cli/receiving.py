# SPDX-License-Identifier: MIT
"""A receive from begin to end: a wire, a thread for each of its queues, a meter and a report, joined.

Each of them does one thing; no option of the command line is known here. Invariant: however it ends (by itself, Ctrl-C,
an error, a lost interface) the generator is stopped, the queues are closed and the terminal is as it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Protocol

from pagepool.cli import without_pool
from pagepool.cli.capture_file import CaptureFile
from pagepool.cli.failure import CannotError, UsageError
from pagepool.cli.forwarding import directions
from pagepool.cli.interruption import Interruption
from pagepool.cli.meter import Meter, Sample
from pagepool.cli.parquet_file import ParquetFile
from pagepool.cli.query import Query, WindowResult
from pagepool.cli.summary import Summary
from pagepool.cli.tap import ACTIONS, Sink, Tap
from pagepool.cli.wire import Wire
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.napi import NAPI_POLL_WEIGHT

__all__ = ["Report", "receive"]

_ARROW_BUDGET = 1024  # a record batch costs as much as reading 500 frames: let it be a large one, where many come


class Report(Protocol):
    """How a receive is shown."""

    interval_s: float

    def begin(self, wire: Wire, first: Sample) -> None: ...
    def show(self, now: Sample) -> None: ...
    def window(self, result: WindowResult) -> None: ...
    def end(self, summary: Summary) -> None: ...
    def close(self) -> None: ...


def receive(
    wire: Wire,
    action: str,
    report: Report,
    *,
    seconds: float | None = None,
    write: str | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    query: Query | None = None,
) -> Summary:
    """Receive until the time is up or Ctrl-C, and report.

    Parameters
    ----------
    wire : Wire
        Not open yet.
    action : str
        A key of `ACTIONS`, for the frames that the wire has no verdict of its own for.
    report : Report
    seconds : float, optional
        Longest time.
    write : str, optional
        Path of a capture file; Parquet if it is called so, else pcapng.
    threads : int, optional
        How many poll the queues; one for each by default.
    cpus : sequence of int, optional
        Where each thread is to stay.
    query : Query, optional
        Asks about the frames, window after window.

    Raises
    ------
    CannotError
        Something cannot be done; `UsageError` if it makes no sense.
    OSError
        The device or the capture file failed; what was received by then has been reported.
    """
    is_parquet = write is not None and write.endswith(".parquet")
    with Interruption() as signals, ExitStack() as undo:
        signals.hold()
        undo.callback(signals.forget)
        undo.enter_context(wire)
        undo.callback(signals.hold)
        signals.release()
        undo.callback(report.close)
        if query is not None:
            undo.callback(query.stop)
        budget = _ARROW_BUDGET if query is not None or is_parquet else NAPI_POLL_WEIGHT
        taps = [
            Tap(f"{queue.name} queue {queue.queue}", wire.verdict(queue) or ACTIONS[action]) for queue in wire.queues
        ]
        running = _threads(wire, taps, threads, cpus, budget)
        # Last, when nothing is left that could be refused: it empties a file that is there already.
        capture = None if write is None else ParquetFile(write) if is_parquet else CaptureFile(write)
        if capture is not None:
            undo.enter_context(closing(capture))
        sinks: list[Sink | None] = [capture, query.window if query is not None else None]
        for sink in filter(None, sinks):
            for tap in taps:
                tap.show(sink)
        undo.callback(_end, running)
        meter = Meter(wire, taps)
        try:
            running.start()
            report.begin(wire, meter.sample())
            if query is not None:
                query.start()
            wire.start()
            _watch(meter, report, running, seconds, query)
        except KeyboardInterrupt:
            pass
        failure = _end(running)
        if capture is not None:
            failure = _closed(capture) or failure
        if query is not None:
            for result in query.stop():
                report.window(result)
            failure = failure or query.failure
        last = meter.sample()
        wire.stop()
        costs = without_pool.measure(wire.queues[0]) if failure is None else None
        summary = Summary(
            wire.title,
            wire.reason,
            action,
            last,
            costs,
            write or "",
            capture.frames if capture is not None else 0,
            tuple(directions(wire, last)),
            query.figures() if query is not None else None,
            threads or len(wire.queues),
            tuple(wire.steered),
        )
        report.end(summary)
    if failure is not None:
        raise failure
    return summary


def _threads(wire: Wire, taps: list[Tap], threads: int | None, cpus: Sequence[int] | None, budget: int) -> QueueThreads:
    """Return the threads, not yet started."""
    nr_queues = len(wire.queues)
    if threads is not None and threads > nr_queues:
        queues = "there is one queue" if nr_queues == 1 else f"there are {nr_queues} queues"
        raise UsageError(f"--threads {threads}: {queues}, and a queue has one owner")
    nr_threads = threads or nr_queues
    if cpus is not None and len(cpus) != nr_threads:
        raise UsageError(f"--cpu: threads: {nr_threads}, CPUs: {len(cpus)}; give one for each")
    try:
        return QueueThreads(wire.queues, taps, threads=threads, cpus=cpus, budget=budget)
    except ValueError as error:
        raise CannotError(f"--cpu: {error}") from None


def _watch(meter: Meter, report: Report, threads: QueueThreads, seconds: float | None, query: Query | None) -> None:
    """Report at even intervals until it is time, or a thread failed."""
    start = time.monotonic()
    end = start + seconds if seconds is not None else float("inf")
    due = start
    while (now := time.monotonic()) < end:
        due += report.interval_s
        if threads.wait(max(min(due, end) - now, 0.0)) or (query is not None and query.failure is not None):
            return
        if time.monotonic() > due + report.interval_s:
            due = time.monotonic()  # after a SIGSTOP: one report, not one for every second of it
        for result in query.results() if query is not None else ():
            report.window(result)
        if time.monotonic() < end or due <= end:
            report.show(meter.sample())


def _end(threads: QueueThreads) -> BaseException | None:
    """Stop the threads; return what ended them early."""
    threads.stop()
    try:
        threads.join()
    except BaseException as error:
        return error
    return None


def _closed(capture: CaptureFile | ParquetFile) -> CannotError | None:
    """Close a capture; return why it is not whole."""
    try:
        capture.close()
    except CannotError as error:
        return error
    return None

# SPDX-License-Identifier: MIT
"""One line a second, for pipes, files and terminals that cannot move their cursor. Or one JSON object a second."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from pagepool.cli import units
from pagepool.cli.forwarding import directions
from pagepool.cli.meter import Rates, Sample, rates
from pagepool.cli.query import WindowResult
from pagepool.cli.result_table import headline, table_lines
from pagepool.cli.summary import Summary
from pagepool.cli.wire import Wire

__all__ = ["JsonReport", "PlainReport"]

_WIDEST, _MOST_LINES = 160, 50  # of a query's result


class PlainReport:
    """Lines of text.

    Parameters
    ----------
    file : text file, optional
        Standard output by default.
    """

    interval_s = 1.0

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._before: Sample | None = None
        self._wire: Wire | None = None

    def begin(self, wire: Wire, first: Sample) -> None:
        """Say what is about to happen."""
        self._before = first
        self._wire = wire
        self._say(f"receiving over {wire.title}")
        for line in filter(None, (*map(str, wire.steered), wire.reason)):
            self._say(line)

    def show(self, now: Sample) -> None:
        """Print the second that has passed."""
        assert self._before is not None
        assert self._wire is not None
        self._say(_line(now, rates(self._before, now)) + _ways(self._wire, now))
        self._before = now

    def window(self, result: WindowResult) -> None:
        """Print what the query said."""
        self._say(headline(result), *(f"  {line}" for line in table_lines(result, _WIDEST, _MOST_LINES)))

    def end(self, summary: Summary) -> None:
        """Print the summary."""
        self._say("", *summary.lines())

    def close(self) -> None:
        """Nothing to put back."""

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self._file, flush=True)


def _line(now: Sample, rate: Rates) -> str:
    pages = f"{now.total('in_cache')} cached, {now.total('in_ring'):,} ringed, {now.total('lent'):,} lent"
    ways = f"{units.short(rate.fast)} fast, {units.short(rate.refill)} refill, {units.short(rate.slow)} slow"
    return (
        f"{now.at_s:4.1f} s {units.per_second(rate.packets):>9} {units.bits_per_second(rate.bits):>12}"
        f" | pages: {pages} | per second: {ways} | {now.maps} mapped, {units.percent(now.recycle_ratio)} recycled"
    )


def _ways(wire: Wire, now: Sample) -> str:
    return "".join(
        f" | {way.source} to {way.target}: {units.count(way.forwarded)}, {units.count(way.refused)} refused"
        for way in directions(wire, now)
    )


class JsonReport:
    """JSON lines: a ``sample`` a second, a ``window`` for each result of a query, at the end a ``summary``.

    The kernel's counters have netlink's spelling.
    """

    interval_s = 1.0

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._before: Sample | None = None

    def begin(self, wire: Wire, first: Sample) -> None:
        """Print nothing; the summary says what it was."""
        self._before = first

    def show(self, now: Sample) -> None:
        """Print a sample."""
        assert self._before is not None
        rate = rates(self._before, now)
        self._before = now
        self._say(
            {
                "type": "sample",
                "seconds": round(now.at_s, 3),
                "pps": rate.packets,
                "bits-per-second": rate.bits,
                "lost-per-second": rate.lost,
                "frames": now.total("frames"),
                "allocator-calls": now.allocator_calls,
                "maps": now.maps,
                "recycle-ratio": now.recycle_ratio,
                "memory": now.memory,
                "queues": [queue.as_dict() for queue in now.queues],
            }
        )

    def window(self, result: WindowResult) -> None:
        """Print what the query said."""
        self._say(result.as_dict())

    def end(self, summary: Summary) -> None:
        """Print the summary."""
        self._say(summary.as_dict())

    def close(self) -> None:
        """Nothing to put back."""

    def _say(self, figures: dict[str, Any]) -> None:
        print(json.dumps(figures), file=self._file, flush=True)

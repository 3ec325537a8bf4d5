# SPDX-License-Identifier: MIT
"""The end of a receive: what happened, how often memory was asked for, and what it would have cost without the pool.

Figures in, text or a dictionary out. The estimate says that it is one, and from what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagepool.cli import units
from pagepool.cli.forwarding import Direction
from pagepool.cli.meter import Sample
from pagepool.cli.query import QueryFigures
from pagepool.cli.steered import Steered
from pagepool.cli.without_pool import Cost, Costs

__all__ = ["Summary"]

_LABEL, _COLUMN = 24, 15


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished receive.

    Attributes
    ----------
    title : str
        What frames came over.
    reason : str
        Why it was not something better; or empty.
    action : str
        What became of the frames.
    last : Sample
        Taken after the last batch.
    costs : Costs or None
        Timed after the run; None if there was no time.
    capture : str
        File the frames were written to, or empty.
    captured : int
        Frames in it.
    ways : tuple of Direction
        What went which way, where it was forwarded.
    query : QueryFigures or None
        What a query saw, if there was one.
    threads : int
        That polled the queues.
    steered : tuple of Steered
        What NICs were told to send where.
    """

    title: str
    reason: str
    action: str
    last: Sample
    costs: Costs | None
    capture: str = ""
    captured: int = 0
    ways: tuple[Direction, ...] = ()
    query: QueryFigures | None = None
    threads: int = 1
    steered: tuple[Steered, ...] = ()

    @property
    def frames(self) -> int:
        """int : frames received."""
        return self.last.total("frames")

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: one flat object, and the queues."""
        last, frames, span = self.last, self.frames, max(self.last.at_s, 1e-9)
        size_bytes = last.total("size_bytes")
        result: dict[str, Any] = {
            "type": "summary",
            "source": self.title,
            "reason": self.reason,
            "action": self.action,
            "threads": self.threads,
            "seconds": round(last.at_s, 3),
            "frames": frames,
            "bytes": size_bytes,
            "lost": last.total("lost"),
            "sent": last.sent,
            "pps": frames / span,
            "bits-per-second": 8 * size_bytes / span,
            "allocator-calls": last.allocator_calls,
            "maps": last.maps,
            "recycle-ratio": last.recycle_ratio,
            "memory": last.memory,
            "memory-bytes": last.memory_bytes,
            "queues": [queue.as_dict() for queue in last.queues],
        }
        if self.ways:
            result["forward"] = [way.as_dict() for way in self.ways]
        if self.steered:
            result["steered"] = [one.as_dict() for one in self.steered]
        if self.capture:
            result["capture"] = {"path": self.capture, "frames": self.captured}
        if self.query is not None:
            result["query"] = self.query._asdict()
        if self.costs is not None:
            result["without-pool-estimate"] = {
                "page-seconds": _total_s(self.costs.page, frames),
                "buffer-seconds": _total_s(self.costs.buffer, frames),
                "mapping-seconds": _total_s(self.costs.mapping, frames) if self.costs.mapping else None,
                "with-pool-seconds": _total_s(self.costs.pool, frames),
                "measured": self.costs.as_dict(),
            }
        return result

    def lines(self) -> list[str]:
        """Return it as text of up to 79 columns, the headline first."""
        return [*self._headline(), "", *self._table(), "", *self._pages()]

    def _headline(self) -> list[str]:
        last, frames, span = self.last, self.frames, max(self.last.at_s, 1e-9)
        size_bytes, lost = last.total("size_bytes"), last.total("lost")
        packets, bits = units.per_second(frames / span), units.bits_per_second(8 * size_bytes / span)
        lines = [f"{units.count(frames)} frames in {last.at_s:.1f} s: {packets}, {bits}"]
        lines.append(f"over {self.title}; every frame: {self.action}")
        lines += [_way(way) for way in self.ways]
        lines += map(str, self.steered)
        if self.reason:
            lines.append(self.reason)
        if lost:
            share = units.percent(lost / (lost + frames))
            lines.append(f"{units.count(lost)} more ({share}) came faster than they could be taken, and were lost")
        if self.capture:
            lines.append(f"{units.count(self.captured)} frames are in {self.capture}")
        if self.query is not None:
            windows, seen, missed = self.query
            rest = f"; {units.count(missed)} were in none" if missed else ""
            lines.append(f"the query saw {units.count(seen)} frames in {windows} windows{rest}")
        return lines

    def _table(self) -> list[str]:
        last, costs, frames = self.last, self.costs, self.frames
        lines = [_row("", "with the pool", "without it (estimate)")]
        lines.append(_row("page allocator called", units.times(last.allocator_calls), units.times(frames)))
        if costs is not None:
            lines.append(_row("  takes", _total(costs.pool, frames), _by(costs.page, frames)))
            lines.append(_row("", "", _by(costs.buffer, frames)))
        lines.append(_row("mapped for the device", units.times(last.maps), units.times(frames)))
        if costs is not None and costs.mapping is not None:
            lines.append(_row("  takes", "", _by(costs.mapping, frames)))
        if costs is not None:
            lines.append(f"(estimate: one operation, timed {costs.page.repeats} times after the run, times the frames)")
        return lines

    def _pages(self) -> list[str]:
        last, fresh = self.last, self.last.total("fresh")
        each = units.count(round(last.total("allocated") / fresh)) if fresh else "0"
        recycled = units.percent(last.recycle_ratio)
        return [
            f"{units.count(fresh)} pages carried them all, each some {each} times: {recycled} recycled",
            f"out of {units.bytes_of(last.memory_bytes)} of {last.memory}",
        ]


def _way(way: Direction) -> str:
    line = f"{way.source} to {way.target}: {units.count(way.forwarded)} of {units.count(way.received)} frames"
    if way.refused:
        line += f", {units.count(way.refused)} refused (no room to send)"
    return line + (f", {units.count(way.copied)} copied" if way.copied else ", none copied")


def _total_s(cost: Cost, frames: int) -> float:
    return cost.ns * frames / 1e9


def _total(cost: Cost, frames: int) -> str:
    return units.seconds(_total_s(cost, frames))


def _by(cost: Cost, frames: int) -> str:
    return f"{_total(cost, frames):<8} {cost.what}, {units.seconds(cost.ns / 1e9)} each"


def _row(label: str, left: str, right: str) -> str:
    return f"{label:<{_LABEL}}{left:<{_COLUMN}}{right}".rstrip()

# SPDX-License-Identifier: MIT
"""One screen that shows the pool at work, redrawn in place four times a second.

Rates are of the last second, so that the figures can be read; counts are of now. It fits 80 columns and 24 lines, and
gives way to the summary at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pagepool.cli import units
from pagepool.cli.forwarding import directions
from pagepool.cli.meter import Rates, Sample, rates
from pagepool.cli.query import WindowResult
from pagepool.cli.result_table import headline, table_lines
from pagepool.cli.summary import Summary
from pagepool.cli.wire import Wire

__all__ = ["LiveReport"]

_WINDOW_S = 1.0
_BARS = " ▁▂▃▄▅▆▇█"
_LABEL = 16
_WIDEST = 100
_OTHER_LINES = 21  # of the screen, beside the lines of single queues
_RESULT_OTHER_LINES = 8  # and beside a query's result


class LiveReport:
    """The screen.

    Parameters
    ----------
    console : rich.console.Console
        A terminal.
    seconds : float, optional
        When it will end by itself; only to say so.
    """

    interval_s = 0.25

    def __init__(self, console: Console, seconds: float | None) -> None:
        self._console = console
        self._seconds = seconds
        self._recent: deque[Sample] = deque()
        self._history: deque[float] = deque(maxlen=240)
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._wire: Wire | None = None
        self._result: WindowResult | None = None

    def begin(self, wire: Wire, first: Sample) -> None:
        """Show the first screen."""
        self._wire = wire
        self._recent.append(first)
        self._live.start()

    def show(self, now: Sample) -> None:
        """Draw the screen anew."""
        while len(self._recent) > 1 and now.at_s - self._recent[1].at_s >= _WINDOW_S:
            self._recent.popleft()
        rate = rates(self._recent[0], now)
        self._history.append(rates(self._recent[-1], now).packets)
        self._live.update(self.screen(now, rate), refresh=True)
        self._recent.append(now)

    def window(self, result: WindowResult) -> None:
        """Show what the query said, from the next drawing on, instead of where pages are and come from."""
        self._result = result

    def end(self, summary: Summary) -> None:
        """Give way to the summary."""
        self.close()
        if self._result is not None:
            for row in _result(self._result, self._console.width - 1, self._console.height):
                self._console.print(row, soft_wrap=True)
            self._console.print()
        for number, line in enumerate(summary.lines()):
            self._console.print(Text(line, style="bold" if number == 0 else ""), soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        self._live.stop()

    # -- the screen, from top to bottom ------------------------------------------------------------------------------

    def screen(self, now: Sample, rate: Rates) -> Group:
        """Return the whole screen, no line wider than the terminal."""
        width = min(self._console.width - 1, _WIDEST)
        lines = list(self._lines(now, rate, width))
        for line in lines:
            line.truncate(width)
        return Group(*lines)

    def _lines(self, now: Sample, rate: Rates, width: int) -> Iterator[Text]:
        assert self._wire is not None
        until = f" of {self._seconds:.0f} s" if self._seconds else " s, Ctrl-C ends"
        yield _ends(f" {self._wire.title}", f"{now.at_s:.0f}{until} ", width, "bold reverse")
        if self._wire.reason:
            yield Text(f" {self._wire.reason}", style="dim")
        yield Text()
        yield self._speed(now, rate)
        yield Text(f" {_spark(self._history, width - 2)}", style="green")
        yield Text()
        if self._result is not None:
            yield from _result(
                self._result, width, self._console.height - _RESULT_OTHER_LINES - bool(self._wire.reason)
            )
            yield Text()
            yield _recycled(now, width)
            yield Text()
            return
        yield from _where(now, width)
        yield Text()
        ways = list(_ways(self._wire, self._recent[0], now))
        if ways:
            yield from ways
            yield Text()
        if len(now.queues) > max(1, len(ways)):
            yield from _queue_lines(self._recent[0], now, self._console.height - _OTHER_LINES - len(ways))
            yield Text()
        yield from _came(now, rate)
        yield Text()
        yield _recycled(now, width)
        yield Text()  # the terminal echoes ^C where the cursor is: not at the end of a full line

    def _speed(self, now: Sample, rate: Rates) -> Text:
        line = Text(" ")
        line.append(f"{units.per_second(rate.packets):>10}", style="bold green")
        line.append(f"   {units.bits_per_second(rate.bits):>12}", style="bold green")
        line.append(f"   {units.count(now.total('frames'))} frames")
        if rate.lost:
            share = rate.lost / (rate.lost + rate.packets)
            line.append(f"   {units.per_second(rate.lost)} lost ({100 * share:.0f} %)", style="yellow")
        return line


def _recycled(now: Sample, width: int) -> Text:
    recycled = f" {units.percent(now.recycle_ratio)} recycled"
    return _ends(recycled, f"{units.bytes_of(now.memory_bytes)} of {now.memory} ", width, "bold")


def _result(result: WindowResult, width: int, height: int) -> Iterator[Text]:
    """A query's result, as much of it as fits."""
    yield Text(f" {headline(result)}", style="yellow" if result.missed else "dim")
    for number, line in enumerate(table_lines(result, width - 3, max(height - 1, 3))):
        yield Text(f"   {line}", style="bold" if number == 0 else "")


def _ways(wire: Wire, before: Sample, now: Sample) -> Iterator[Text]:
    """One line for each way through the wire."""
    span = max(now.at_s - before.at_s, 1e-9)
    both = list(zip(directions(wire, before), directions(wire, now), strict=True))
    room = max((len(new.source) + len(new.target) for _, new in both), default=0) + 4
    for old, new in both:
        speed = units.per_second((new.forwarded - old.forwarded) / span)
        line = Text(f"   {f'{new.source} → {new.target}':<{room}}{speed:>10}   {units.count(new.forwarded)} forwarded")
        if new.refused:
            line.append(f"   {units.count(new.refused)} refused", style="yellow")
        line.append(f"   {units.count(new.copied)} copied", style="yellow" if new.copied else "dim")
        yield line


def _queue_lines(before: Sample, now: Sample, room: int) -> Iterator[Text]:
    """One line a queue, as many as fit."""
    span = max(now.at_s - before.at_s, 1e-9)
    room = max(room, 1)
    shown = len(now.queues) if len(now.queues) <= room else room - 1
    several = len({queue.name for queue in now.queues}) > 1
    width = max(len(queue.name) for queue in now.queues) + 10 if several else 9
    for old, new in list(zip(before.queues, now.queues, strict=True))[:shown]:
        speed = units.per_second((new.frames - old.frames) / span)
        pages = f"{new.pool.in_cache} cached, {new.pool.in_ring:,} ringed, {new.pool.lent:,} lent"
        name = f"{new.name} queue {new.queue}" if several else f"queue {new.queue}"
        yield Text(f"   {name:<{width}}{speed:>13}   pool {new.pool_id}: {pages}")
    if shown < len(now.queues):
        yield Text(f"   and {len(now.queues) - shown} more queues", style="dim")


def _ends(left: str, right: str, width: int, style: str) -> Text:
    room = width - len(right)
    return Text(f"{left[:room]:<{room}}{right}"[:width], style=style)


def _spark(history: deque[float], width: int) -> str:
    shown = list(history)[-width:]
    top = max(shown, default=0.0) or 1.0
    return "".join(_BARS[min(8, round(8 * value / top))] for value in shown)


def _where(now: Sample, width: int) -> Iterator[Text]:
    """Where the pages are: a bar for each place, all to one scale."""
    at_device = min(now.total("at_device"), now.total("lent"))  # one may have been read a batch later
    places = (
        ("at the device", at_device, "blue"),
        ("lent to you", now.total("lent") - at_device, "yellow"),
        ("cached", now.total("in_cache"), "green"),
        ("ringed", now.total("in_ring"), "cyan"),
    )
    held = max(sum(pages for _, pages, _ in places), 1)
    yield Text(f" Where the {units.count(now.total('inflight'))} pages are", style="bold")
    room = width - _LABEL - 12
    for name, pages, color in places:
        line = Text(f"   {name:<{_LABEL - 3}}{pages:>8,} ")
        line.append("█" * max(round(room * pages / held), 1 if pages else 0), style=color)
        yield line


def _came(now: Sample, rate: Rates) -> Iterator[Text]:
    """Where pages came from, cheapest first."""
    rows = (
        ("fast", units.short(rate.fast) + " pages/s", "from the cache", now.total("fast"), ""),
        ("refill", units.short(rate.refill) + " times/s", "from the ring, up to 64 pages", now.total("refill"), ""),
        ("slow", units.short(rate.slow) + " times/s", "page allocator called", now.allocator_calls, "yellow"),
        ("map", units.short(rate.maps) + " times/s", "mapped for the device", now.maps, "yellow"),
    )
    yield Text(f" {'Where pages come from':<{_LABEL + 17}}{'in all':>14}", style="bold")
    for name, per_second, what, total, color in rows:
        busy = color if per_second[0] != "0" else ""
        yield Text(f"   {name:<{_LABEL - 9}}{per_second:>19}{units.short(total):>18}   {what}", style=busy)

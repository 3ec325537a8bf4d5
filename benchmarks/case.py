# SPDX-License-Identifier: MIT
"""One thing to time, and what timing it gave.

A `Case` knows how to do something `n` times and how many pages that moved; it knows nothing of rounds, tables
or targets. A `Figure` holds the same unit for every round of it. Invariant: round `i` of two figures of one
run was measured within the same second or so, which is why ratios are taken round by round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter_ns
from typing import Any

__all__ = ["COMPILED_LOOP", "PYTHON_LOOP", "Case", "Figure", "Spread", "compiled", "python_loop", "ratio", "spread"]

PYTHON_LOOP = "python loop"
COMPILED_LOOP = "for_loop"


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes
    ----------
    name : str
        Unique in a run.
    measure : callable
        ``measure(n) -> ns``: do it `n` times, return the nanoseconds of exactly that.
    what : str
        One line for the reader.
    pages : int
        Pages that one time moves; the figure is divided by it.
    per : str
        What the figure is for: ``"page"``, ``"pair of calls"``.
    overhead : str or None
        The case whose figure (one turn of an empty loop) is subtracted.
    against : str or None
        The case it is set beside in the table.
    """

    name: str
    measure: Callable[[int], int]
    what: str
    pages: int = 1
    per: str = "page"
    overhead: str | None = PYTHON_LOOP
    against: str | None = None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers, and the smallest."""

    median: float
    q1: float
    q3: float
    least: float


@dataclass(frozen=True)
class Figure:
    """Nanoseconds per page (or per what `case.per` says) of every round, the loop's own time subtracted."""

    case: Case
    times: int  # how often a round did it
    samples: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Spread : over the rounds, ns."""
        return spread(self.samples)


def spread(numbers: Sequence[float]) -> Spread:
    """Return median, quartiles and minimum of at least one number."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0], numbers[0])
    q1, median, q3 = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(median, q1, q3, min(numbers))


def ratio(over: Figure, under: Figure) -> Spread:
    """Return `over` / `under`, taken round by round."""
    floor = 1e-3  # ns: a loop that costs nothing net must not divide by zero
    return spread([a / max(b, floor) for a, b in zip(over.samples, under.samples, strict=True)])


def compiled(loop: Callable[..., Any], *args: Any) -> Callable[[int], int]:
    """Return the `measure` of a compiled loop whose last argument is the number of rounds."""

    def measure(n: int) -> int:
        start = perf_counter_ns()
        loop(*args, n)
        return perf_counter_ns() - start

    return measure


def python_loop(n: int) -> Iterable[None]:
    """Return what a Python loop runs over to turn `n` times, the cheapest there is."""
    return repeat(None, n)

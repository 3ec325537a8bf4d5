# SPDX-License-Identifier: MIT
"""Time cases in turns, so that what the machine does meanwhile falls on all of them alike.

Each round times every case once, forwards and backwards by turns. Garbage collection is off, the process is
pinned, and the loop's own time is taken off within the round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.case import Case, Figure

__all__ = ["run_rounds"]

_FIRST_TIMES = 4
_TRIES = 3
_MAX_TIMES = 1 << 28


def run_rounds(
    cases: Sequence[Case], rounds: int, sample_ms: float, progress: Callable[[str], None]
) -> dict[str, Figure]:
    """Time every case in every round.

    Parameters
    ----------
    cases : sequence of Case
        In the order of the table; an `overhead` must be among them.
    rounds : int
        Samples of each.
    sample_ms : float
        About how long one sample takes.
    progress : callable
        Told what is being done.

    Returns
    -------
    dict of str to Figure
        By name, in the same order.
    """
    with _no_collection():
        times = {case.name: _calibrate(case, sample_ms * 1e6) for case in cases}
        raw: dict[str, list[float]] = {case.name: [] for case in cases}
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for case in cases if number % 2 == 0 else reversed(cases):
                n = times[case.name]
                raw[case.name].append(case.measure(n) / n)
            gc.collect()
    return {case.name: Figure(case, times[case.name], tuple(_net(case, raw))) for case in cases}


def _net(case: Case, raw: dict[str, list[float]]) -> Iterator[float]:
    loops = raw[case.overhead] if case.overhead is not None else [0.0] * len(raw[case.name])
    for mine, loop in zip(raw[case.name], loops, strict=True):
        yield (mine - loop) / case.pages


def _calibrate(case: Case, sample_ns: float) -> int:
    """Return how often the case fits into a sample; also warms it up.

    The shortest of a few tries counts: one hiccup here would leave every sample too short to mean anything.
    """
    n = _FIRST_TIMES
    while n < _MAX_TIMES:
        took = max(1, min(case.measure(n) for _ in range(_TRIES)))
        if took >= sample_ns / 8:
            break
        n *= 4
    return max(1, min(_MAX_TIMES, round(n * sample_ns / took)))


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

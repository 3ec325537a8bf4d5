# SPDX-License-Identifier: MIT
"""Where the figures should stand, and where they do: ratios within one run, never asserted.

A time that was set on another machine is carried over by the price of a fresh page (mmap, touch, munmap of
4 KiB, compiled), which both machines paid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.case import Figure, Spread, ratio, spread
from benchmarks.receive.passes import Received, rate_ratio
from benchmarks.scenarios.af_xdp import C_RECEIVERS, LIVE
from benchmarks.scenarios.baseline import EMPTY_CALLS, FRESH_PAGE, LIST
from benchmarks.scenarios.bulk import BULK_64, BULK_64_NEW, LIST_64, LIST_SLICES
from benchmarks.scenarios.fast_path import FAST_PATH
from benchmarks.scenarios.handles import DEL_CLASS, LAST_REFERENCE, LIST_TOUCH, PUT_PAGE, PUT_PAGE_TOUCH
from benchmarks.scenarios.mempool import REFERENCE_FRESH_NS, REFERENCE_MEMPOOL_NS, mempool_name

__all__ = ["Standing", "standings"]

_Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class Standing:
    """One target.

    Attributes
    ----------
    what : str
        What is compared.
    value : Spread
        Measured, in `unit`, over the rounds or passes.
    limit : float
        Wanted, in `unit`.
    unit : str
        ``"x"`` for a ratio, or what the figures are in.
    at_most : bool
        Whether `limit` is the largest value wanted; else the smallest.
    """

    what: str
    value: Spread
    limit: float
    unit: str = "x"
    at_most: bool = True

    @property
    def stands(self) -> str:
        """str : whether the median holds; if not, whether a quarter of the rounds did."""
        if self._is_met(self.value.median):
            return "holds"
        return "within spread" if self._is_met(self.value.q1 if self.at_most else self.value.q3) else "misses"

    def _is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


def standings(figures: _Figures, rows: Sequence[Received] = ()) -> list[Standing]:
    """Return every target whose rows were measured."""
    return [*_compiled(figures), *_handles(figures), *_bulk(figures), *_threads(figures), *_receivers(rows)]


def _compiled(figures: _Figures) -> Iterator[Standing]:
    if FAST_PATH not in figures:
        return
    fresh = zip(figures[FAST_PATH].samples, figures[FRESH_PAGE].samples, strict=True)
    scaled = spread([REFERENCE_FRESH_NS * pair / page for pair, page in fresh])
    where = f"where a fresh page is {REFERENCE_FRESH_NS / 1000:.1f} us"
    yield Standing(f"compiled pair, {where}: rte_mempool there", scaled, REFERENCE_MEMPOOL_NS, "ns")
    yield Standing(f"compiled pair, {where}", scaled, 3.0, "ns")
    if mempool_name(1) in figures:
        yield _beside(figures, FAST_PATH, mempool_name(1), 1.0)


def _handles(figures: _Figures) -> Iterator[Standing]:
    if PUT_PAGE not in figures:
        return
    yield _beside(figures, PUT_PAGE, EMPTY_CALLS, 1.5)
    yield _beside(figures, LAST_REFERENCE, EMPTY_CALLS, 1.15)
    yield _beside(figures, PUT_PAGE_TOUCH, LIST_TOUCH, 1.1)
    yield Standing(
        f"{DEL_CLASS} / {LAST_REFERENCE}", ratio(figures[DEL_CLASS], figures[LAST_REFERENCE]), 5.0, at_most=False
    )


def _bulk(figures: _Figures) -> Iterator[Standing]:
    if BULK_64 not in figures:
        return
    for name in (BULK_64, BULK_64_NEW):
        yield Standing(f"{name}, a page", figures[name].spread, 2.0, "ns")
        yield Standing(f"{LIST_64} / {name}", ratio(figures[LIST_64], figures[name]), 10.0, at_most=False)
    yield Standing(f"{LIST} / {BULK_64}", ratio(figures[LIST], figures[BULK_64]), 10.0, at_most=False)
    yield _beside(figures, BULK_64, LIST_SLICES, 1.0)


def _threads(figures: _Figures) -> Iterator[Standing]:
    for name, figure in figures.items():
        if name.startswith("cross put_") and figure.case.against is not None:
            yield _beside(figures, name, figure.case.against, 1.0)


def _receivers(rows: Sequence[Received]) -> Iterator[Standing]:
    live = {row.name: row for row in rows if row.generator == LIVE}
    for name in C_RECEIVERS:
        mine = live.get(name.replace("C", "pagepool", 1))
        if mine is not None and name in live:
            beside = f"{mine.name} / {name}, {LIVE}"
            yield Standing(beside, rate_ratio(mine, live[name]), 1.0, at_most=False)


def _beside(figures: _Figures, over: str, under: str, limit: float) -> Standing:
    return Standing(f"{over} / {under}", ratio(figures[over], figures[under]), limit)

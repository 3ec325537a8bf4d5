# SPDX-License-Identifier: MIT
"""Where the figures should stand, and where they do: ratios within one run, never asserted.

A time that was set on another machine is carried over by the price of a fresh page (mmap, touch, munmap of
4 KiB, compiled), which both machines paid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.case import Figure, ratio
from benchmarks.scenarios.baseline import EMPTY_CALLS, FRESH_PAGE, LIST
from benchmarks.scenarios.bulk import BULK_64, BULK_64_NEW, LIST_SLICES
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
    value, limit : float
        Measured and wanted, in `unit`.
    at_most : bool
        Whether `limit` is the largest value wanted; else the smallest.
    unit : str
        ``"x"`` for a ratio, or what the figures are in.
    """

    what: str
    value: float
    limit: float
    unit: str = "x"
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def standings(figures: _Figures) -> list[Standing]:
    """Return every target whose rows are in `figures`."""
    return [*_compiled(figures), *_handles(figures), *_bulk(figures), *_threads(figures)]


def _compiled(figures: _Figures) -> Iterator[Standing]:
    if FAST_PATH not in figures:
        return
    scaled = ratio(figures[FAST_PATH], figures[FRESH_PAGE]).median * REFERENCE_FRESH_NS
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
        f"{DEL_CLASS} / {LAST_REFERENCE}", ratio(figures[DEL_CLASS], figures[LAST_REFERENCE]).median, 5.0, at_most=False
    )


def _bulk(figures: _Figures) -> Iterator[Standing]:
    if BULK_64 not in figures:
        return
    for name in (BULK_64, BULK_64_NEW):
        yield Standing(f"{name}, a page", figures[name].spread.median, 2.0, "ns")
        yield Standing(f"{LIST} / {name}", ratio(figures[LIST], figures[name]).median, 10.0, at_most=False)
    yield _beside(figures, BULK_64, LIST_SLICES, 1.0)


def _threads(figures: _Figures) -> Iterator[Standing]:
    for name, figure in figures.items():
        if name.startswith("cross put_") and figure.case.against is not None:
            yield _beside(figures, name, figure.case.against, 1.0)


def _beside(figures: _Figures, over: str, under: str, limit: float) -> Standing:
    return Standing(f"{over} / {under}", ratio(figures[over], figures[under]).median, limit)

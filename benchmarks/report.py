# SPDX-License-Identifier: MIT
"""What a run found, as tables and as JSON. Gathers nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Figure, Spread, ratio
from benchmarks.table import Table, show
from benchmarks.targets import Standing

__all__ = ["figure_rows", "show_figures", "show_standings", "standing_rows", "write_json"]

_Figures = Mapping[str, Figure]


def figure_rows(figures: _Figures) -> list[dict[str, Any]]:
    """Return one JSON object a figure."""
    return [
        {
            "name": name,
            "what": figure.case.what,
            "unit": f"ns per {figure.case.per}",
            **asdict(figure.spread),
            "subtracted": figure.case.overhead,
            "against": figure.case.against,
            "ratio": asdict(ratio(figure, figures[figure.case.against])) if figure.case.against in figures else None,
            "rounds": len(figure.samples),
            "times_a_round": figure.times,
            "pages_a_time": figure.case.pages,
            "samples": [round(sample, 4) for sample in figure.samples],
        }
        for name, figure in figures.items()
    ]


def standing_rows(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return one JSON object a target."""
    return [{**asdict(standing), "holds": standing.holds} for standing in standings]


def show_figures(figures: _Figures) -> None:
    """Print the table of times."""
    rounds = max((len(figure.samples) for figure in figures.values()), default=0)
    table = Table(
        f"Times: medians and quartiles of {rounds} rounds in turns, empty loops subtracted",
        ("row", "median", "quartiles", "unit", "ratio", "to"),
        ("row", "unit", "to"),
    )
    for name, figure in figures.items():
        times, peer = figure.spread, figure.case.against
        beside = _number(ratio(figure, figures[peer]).median) if peer in figures else ""
        table.rows.append(
            (
                name,
                _number(times.median),
                _quartiles(times),
                f"ns/{figure.case.per}",
                beside,
                peer or "",
            )
        )
    show(table)


def show_standings(standings: Sequence[Standing]) -> None:
    """Print where the targets stand."""
    table = Table("Targets", ("target", "measured", "wanted", "stands"), ("target", "stands"))
    for standing in standings:
        sign = "<=" if standing.at_most else ">="
        table.rows.append(
            (
                standing.what,
                f"{_number(standing.value)} {standing.unit}",
                f"{sign} {_number(standing.limit)} {standing.unit}",
                "holds" if standing.holds else "misses",
            )
        )
    show(table)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, readable by people too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _quartiles(times: Spread) -> str:
    return f"{_number(times.q1)} to {_number(times.q3)}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"

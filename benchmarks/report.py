# SPDX-License-Identifier: MIT
"""What a run found, as tables and as JSON. Gathers nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Figure, Spread, ratio, spread
from benchmarks.receive.drained import Drained
from benchmarks.receive.passes import Received, rate_ratio
from benchmarks.scenarios.af_xdp import PLAIN
from benchmarks.scenarios.forward import PLAIN_BRIDGE
from benchmarks.table import Table, show
from benchmarks.targets import Standing

__all__ = [
    "drained_rows",
    "figure_rows",
    "forwarded_rows",
    "received_rows",
    "show_drained",
    "show_figures",
    "show_forwarded",
    "show_received",
    "show_standings",
    "standing_rows",
    "write_json",
]

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
            "ratio": _maybe(_to_peer(figure, figures)),
            "rounds": len(figure.samples),
            "times_a_round": figure.times,
            "pages_a_time": figure.case.pages,
            "samples": [round(sample, 4) for sample in figure.samples],
        }
        for name, figure in figures.items()
    ]


def received_rows(rows: Sequence[Received]) -> list[dict[str, Any]]:
    """Return one JSON object a receiver and generator."""
    return [
        {
            "unit": "thousand frames a second",
            **asdict(row),
            "spread": asdict(row.spread),
            "to_c": _maybe(_beside(row, rows, _same_mode_in_c(row))),
            "to_plain_recv": _maybe(_beside(row, rows, PLAIN)),
        }
        for row in rows
    ]


def forwarded_rows(rows: Sequence[Received]) -> list[dict[str, Any]]:
    """Return one JSON object a bridge."""
    return [
        {
            "unit": "thousand frames a second",
            **asdict(row),
            "spread": asdict(row.spread),
            "to_plain_bridge": _maybe(_beside(row, rows, PLAIN_BRIDGE)),
        }
        for row in rows
    ]


def drained_rows(rows: Sequence[Drained]) -> list[dict[str, Any]]:
    """Return one JSON object a way and number of threads."""
    return [{"unit": "thousand frames a second", **asdict(row), "spread": asdict(row.spread)} for row in rows]


def standing_rows(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return one JSON object a target."""
    return [{**asdict(standing), "stands": standing.stands} for standing in standings]


def show_figures(figures: _Figures) -> None:
    """Print the table of times."""
    rounds = max((len(figure.samples) for figure in figures.values()), default=0)
    table = Table(
        f"Times: medians and quartiles of {rounds} rounds in turns, empty loops subtracted",
        ("row", "median", "quartiles", "unit", "ratio", "to"),
        ("row", "unit", "to"),
    )
    for name, figure in figures.items():
        times, beside = figure.spread, _to_peer(figure, figures)
        table.rows.append(
            (
                name,
                _number(times.median),
                _quartiles(times),
                f"ns/{figure.case.per}",
                _number(beside.median) if beside else "",
                figure.case.against or "",
            )
        )
    show(table)


def show_received(rows: Sequence[Received]) -> None:
    """Print the table of rates."""
    passes = max((len(row.kpps) for row in rows), default=0)
    table = Table(
        f"Receiving on veth: medians and quartiles of {passes} passes in turns, thousand frames a second (kpps)",
        ("receiver", "generator", "kpps", "quartiles", "got", "CPU ns/frame", "sender", "to C", "to recv"),
        ("receiver", "generator"),
    )
    for row in rows:
        to_c, to_plain = _beside(row, rows, _same_mode_in_c(row)), _beside(row, rows, PLAIN)
        table.rows.append(
            (
                row.name,
                row.generator,
                _number(row.spread.median),
                _quartiles(row.spread),
                f"{100 * spread(row.got).median:.1f} %",
                _number(spread(row.cpu_ns).median),
                _number(spread(row.sender_ns).median),
                f"{to_c.median:.2f}" if to_c else "",
                f"{to_plain.median:.2f}" if to_plain else "",
            )
        )
    show(table)


def show_forwarded(rows: Sequence[Received]) -> None:
    """Print the table of bridges."""
    passes = max((len(row.kpps) for row in rows), default=0)
    table = Table(
        f"Forwarding between two veth pairs: medians and quartiles of {passes} passes in turns, kpps that arrived",
        ("bridge", "kpps", "quartiles", "got", "CPU ns/frame", "copied", "to AF_PACKET"),
        ("bridge",),
    )
    for row in rows:
        beside = _beside(row, rows, PLAIN_BRIDGE)
        table.rows.append(
            (
                row.name,
                _number(row.spread.median),
                _quartiles(row.spread),
                f"{100 * spread(row.got).median:.1f} %",
                _number(spread(row.cpu_ns).median),
                "each frame" if row.name == PLAIN_BRIDGE else f"{row.copied:,}",
                f"{beside.median:.2f}" if beside else "",
            )
        )
    show(table)


def show_drained(rows: Sequence[Drained]) -> None:
    """Print the table of one thread and two."""
    rounds = max((len(row.kpps) for row in rows), default=0)
    table = Table(
        f"Two queues: medians and quartiles of up to {rounds} rounds in turns, kpps of both together",
        ("row", "kpps", "quartiles", "got", "CPU ns/frame", "to 1", "its quartiles"),
        ("row",),
    )
    for row in rows:
        speedup = spread(row.speedup)
        table.rows.append(
            (
                row.name,
                _number(row.spread.median),
                _quartiles(row.spread),
                f"{100 * spread(row.got).median:.1f} %" if row.got else "",
                _number(spread(row.cpu_ns).median),
                f"{speedup.median:.2f}",
                f"{speedup.q1:.2f} to {speedup.q3:.2f}",
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
                f"{_number(standing.value.median)} {standing.unit}",
                f"{sign} {_number(standing.limit)} {standing.unit}",
                standing.stands,
            )
        )
    show(table)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, readable by people too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _to_peer(figure: Figure, figures: _Figures) -> Spread | None:
    peer = figures.get(figure.case.against or "")
    return None if peer is None else ratio(figure, peer)


def _same_mode_in_c(row: Received) -> str:
    """Return the C receiver that is to be compared with: same mode and budget where it has them."""
    return row.name.replace("pagepool", "C", 1) if row.name[-1].isdigit() else "C spin 64"


def _beside(row: Received, rows: Sequence[Received], name: str) -> Spread | None:
    found = [other for other in rows if other.name == name and other.generator == row.generator]
    return rate_ratio(row, found[0]) if found else None


def _maybe(numbers: Spread | None) -> dict[str, float] | None:
    return None if numbers is None else asdict(numbers)


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

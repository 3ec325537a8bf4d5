# SPDX-License-Identifier: MIT
"""A query's result as text: columns as wide as they need, numbers to the right, no more lines than there is room for.

Only layout; it knows no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagepool.cli import units
from pagepool.cli.query import WindowResult

__all__ = ["headline", "table_lines"]

_WIDEST_VALUE = 40
_GAP = "  "


def headline(result: WindowResult) -> str:
    """Return one line about a window: ``window 3: 120,000 frames in 1.0 s, 2 rows``."""
    rows = f"{len(result.rows):,}{' and more' if result.has_more else ''} row{'' if len(result.rows) == 1 else 's'}"
    text = f"window {result.number}: {units.count(result.frames)} frames in {units.seconds(result.seconds)}, {rows}"
    return f"{text}; {units.count(result.missed)} frames were in no window" if result.missed else text


def table_lines(result: WindowResult, width: int, height: int) -> list[str]:
    """Return the header and the rows.

    Parameters
    ----------
    width : int
        Characters of a line at most.
    height : int
        Lines at most, at least 2; the last one says how many rows did not fit.
    """
    shown = result.rows if len(result.rows) < height else result.rows[: max(height - 2, 0)]
    cells = [[_text(value) for value in row] for row in shown]
    widths = [
        max(len(name), *(len(row[i]) for row in cells)) if cells else len(name) for i, name in enumerate(result.columns)
    ]
    right = [_is_number([row[i] for row in shown]) for i in range(len(result.columns))]
    lines = [_line(cells_of, widths, right)[:width] for cells_of in ([*result.columns], *cells)]
    left_out = len(result.rows) - len(shown)
    if left_out:
        lines.append(f"... and {left_out:,} more rows"[:width])
    return lines


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(cells, widths, right, strict=True))
    return _GAP.join(padded).rstrip()


def _is_number(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) or _is_decimal(value)
        for value in values
    )


def _is_decimal(value: Any) -> bool:
    return type(value).__name__ == "Decimal"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    text = bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _WIDEST_VALUE else text[: _WIDEST_VALUE - 1] + "…"

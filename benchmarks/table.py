# SPDX-License-Identifier: MIT
"""Print tables: by rich where it is installed, in plain columns elsewhere. Knows text only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Table", "show"]


@dataclass
class Table:
    """A title, column heads and rows of text; the columns named in `left` are words, the others numbers."""

    title: str
    heads: Sequence[str]
    left: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)


def show(table: Table) -> None:
    """Print one table; nothing if it has no rows."""
    if not table.rows:
        return
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        _show_plain(table)
        return
    made = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head in table.heads:
        made.add_column(head, justify="left" if head in table.left else "right", no_wrap=True)
    for row in table.rows:
        made.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a file has no width to keep to
        console = Console(width=200)
    console.print(made)
    console.print()


def _show_plain(table: Table) -> None:
    widths = [max(len(row[i]) for row in (table.heads, *table.rows)) for i in range(len(table.heads))]
    print(table.title)
    for row in (table.heads, *table.rows):
        cells = (
            text.ljust(width) if head in table.left else text.rjust(width)
            for head, text, width in zip(table.heads, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())
    print()

# SPDX-License-Identifier: MIT
"""The command itself: how every failure becomes one line on standard error and an exit status.

Nothing is received or printed here. Exit status: 0 done (also when Ctrl-C ended a receive, after its summary),
1 it could not be done, 2 the command line is wrong, 130 Ctrl-C before there was anything to sum up.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; return the exit status.

    Parameters
    ----------
    arguments : list of str, optional
        Without the program's name; by default those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given or ["--help"])
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    # Imported here: it takes half a second, and Ctrl-C in it should end the program without a word.
    try:
        from pagepool.cli.app import app
        from pagepool.cli.failure import failure_line
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        print("pagepool: the command needs typer and rich: pip install 'pagepool[cli]'", file=sys.stderr)
        return 1
    try:
        status = app(args=arguments, prog_name="pagepool", standalone_mode=False)
    except Exception as error:
        line, status = failure_line(error)
        if line is None:
            raise
        print(f"pagepool: {line}", file=sys.stderr)
    return status if isinstance(status, int) else 0

# SPDX-License-Identifier: MIT
"""The command line itself: which subcommands there are, and how every failure becomes one line and a status.

Nothing is received or printed here. Exit status: 0 done (also when Ctrl-C ended a receive, after its summary),
1 it could not be done, 2 the command line is wrong, 130 Ctrl-C before there was anything to sum up.
"""

from __future__ import annotations

import sys

try:
    import typer
except ImportError:  # pragma: no cover
    raise SystemExit("pagepool: the command needs typer and rich: pip install 'pagepool[cli]'") from None

from pagepool.cli.failure import failure_line
from pagepool.cli.probe import probe_command
from pagepool.cli.rx import rx_command

__all__ = ["app", "main"]

app = typer.Typer(
    help="The Linux kernel's page_pool for user space: receive into recycled pages, and see the pool at work.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("rx")(rx_command)
app.command("probe")(probe_command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; return the exit status.

    Parameters
    ----------
    arguments : list of str, optional
        Without the program's name; by default those of this process.
    """
    try:
        given = sys.argv[1:] if arguments is None else arguments
        status = app(args=given or ["--help"], prog_name="pagepool", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line, status = failure_line(error)
        if line is None:
            raise
        print(f"pagepool: {line}", file=sys.stderr)
    return status if isinstance(status, int) else 0

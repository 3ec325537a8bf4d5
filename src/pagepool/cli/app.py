# SPDX-License-Identifier: MIT
"""Which subcommands there are. One file each; this one only lists them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pagepool.cli.kernel_pools import kernel_pools_command
from pagepool.cli.probe import probe_command
from pagepool.cli.rx import rx_command

__all__ = ["app"]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pagepool {version('pagepool')}")
        raise typer.Exit


app = typer.Typer(
    help="The Linux kernel's page_pool for user space: receive into recycled pages, and see the pool at work.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("rx")(rx_command)
app.command("probe")(probe_command)
app.command("kernel-pools")(kernel_pools_command)

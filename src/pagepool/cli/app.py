# SPDX-License-Identifier: MIT
"""Which subcommands there are. One file each; this one only lists them."""

from __future__ import annotations

import typer

from pagepool.cli.kernel_pools import kernel_pools_command
from pagepool.cli.probe import probe_command
from pagepool.cli.rx import rx_command

__all__ = ["app"]

app = typer.Typer(
    help="The Linux kernel's page_pool for user space: receive into recycled pages, and see the pool at work.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("rx")(rx_command)
app.command("probe")(probe_command)
app.command("kernel-pools")(kernel_pools_command)

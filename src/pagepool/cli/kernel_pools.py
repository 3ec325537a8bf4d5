# SPDX-License-Identifier: MIT
"""``pagepool kernel-pools``: the kernel's own page pools, by the same counters that ours have."""

from __future__ import annotations

import json as _json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagepool.cli import units
from pagepool.kernel_pools import KernelPool, kernel_pools

__all__ = ["kernel_pools_command"]

_WIDTH = 200  # a table takes what it needs, and a narrow terminal wraps its lines rather than losing figures
_NONE = "no page pool of the kernel is in sight: no driver here uses one, or it names no device for it"
_UNCOUNTED = "this kernel counts no more than that (CONFIG_PAGE_POOL_STATS is off)"


def kernel_pools_command(
    json: Annotated[bool, typer.Option("--json", help="A JSON object a pool, with all eleven counters.")] = False,
) -> None:
    """List the kernel's own page pools, with their counters."""
    found = kernel_pools()
    if json:
        for pool in found:
            print(_json.dumps(pool.as_dict()))
        return
    console = Console(highlight=False, width=_WIDTH)
    if not found:
        console.print(_NONE, soft_wrap=True)
        return
    console.print(_table(found))
    if not any(pool.stats for pool in found):
        console.print(_UNCOUNTED, soft_wrap=True)


def _table(found: list[KernelPool]) -> Table:
    """One row a pool; of the counters only those that some pool has counted in, so that it fits a terminal."""
    table = Table(box=None, pad_edge=False)
    table.add_column("pool", justify="right", no_wrap=True)
    table.add_column("device", no_wrap=True)
    for name in ("pages", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    names = next((pool.stats for pool in found if pool.stats), {})
    counters = [name for name in names if any(pool.stats.get(name) for pool in found)]
    for name in counters:
        table.add_column(name.replace("-", "\n", 1), justify="right", no_wrap=True)
    if counters:
        table.add_column("recycled", justify="right", no_wrap=True)
    for pool in found:
        values = [units.short(pool.stats.get(name, 0)) for name in counters]
        share = [_recycled(pool.stats)] if counters else []
        memory = units.bytes_of(pool.inflight_mem)
        table.add_row(str(pool.id), _device(pool), f"{pool.inflight:,}", memory, *values, *share)
    return table


def _device(pool: KernelPool) -> str:
    state = "destroyed" if pool.detach_time is not None else ""
    return " ".join(filter(None, (pool.ifname, state))) or "none"


def _recycled(stats: dict[str, int]) -> str:
    """Puts into cache and ring over allocations, as the kernel's own sample tool has it: a little too low."""
    taken = sum(stats.get(f"alloc-{name}", 0) for name in ("fast", "slow", "refill"))
    back = sum(stats.get(f"recycle-{name}", 0) for name in ("cached", "ring"))
    return f"{100 * back / taken:.1f} %" if taken else "-"

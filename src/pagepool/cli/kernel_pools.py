# SPDX-License-Identifier: MIT
"""``pagepool kernel-pools``: the kernel's own page pools, by the same counters that ours have."""

from __future__ import annotations

import json as _json
from typing import Annotated

import typer
from rich.console import Console

from pagepool.cli import units
from pagepool.kernel_pools import KernelPool, kernel_pools

__all__ = ["kernel_pools_command"]


def kernel_pools_command(json: Annotated[bool, typer.Option("--json", help="A JSON object a pool.")] = False) -> None:
    """List the kernel's own page pools: their memory, and their counters where the kernel has them."""
    found = kernel_pools()
    if json:
        for pool in found:
            print(_json.dumps(pool.as_dict()))
        return
    console = Console(highlight=False)
    for pool in found:
        console.print(_line(pool), soft_wrap=True)
    if not found:
        console.print("no page pool of the kernel is in sight: no driver here uses one, or it names no device for it")


def _line(pool: KernelPool) -> str:
    where = pool.ifname or "no device"
    state = ", destroyed with pages out" if pool.detach_time is not None else ""
    text = f"pool {pool.id}, {where}{state}: {pool.inflight:,} pages, {units.bytes_of(pool.inflight_mem)}"
    if not pool.stats:
        return f"{text}; this kernel counts no more (CONFIG_PAGE_POOL_STATS)"
    counters = ", ".join(f"{name} {value:,}" for name, value in pool.stats.items() if value)
    return f"{text}; {counters or 'never used'}"

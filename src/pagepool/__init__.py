# SPDX-License-Identifier: MIT
"""pagepool: the Linux kernel's page_pool for user-space Python.

Pages are allocated once, mapped for the device once, recycled for ever, counted exactly, and never lost. This file
holds public names only.
"""

from typing import TYPE_CHECKING, Any

from pagepool._core.page import Page
from pagepool._core.page_pool import PagePool
from pagepool._core.params import NUMA_NO_NODE, DmaDir, MapGranularity, PagePoolParams, PPFlag
from pagepool._core.registry import pools
from pagepool._core.stats import Holder, PoolStats
from pagepool.memory import MemoryKind, PageAllocator, default_allocator
from pagepool.system_pool import system_pool

if TYPE_CHECKING:
    from pagepool.shared import SharedPool, attach

__all__ = [
    "NUMA_NO_NODE",
    "DmaDir",
    "Holder",
    "MapGranularity",
    "MemoryKind",
    "PPFlag",
    "Page",
    "PageAllocator",
    "PagePool",
    "PagePoolParams",
    "PoolStats",
    "SharedPool",
    "attach",
    "default_allocator",
    "pools",
    "system_pool",
]


def __getattr__(name: str) -> Any:
    # What needs NumPy comes when it is asked for.
    if name in ("SharedPool", "attach"):
        from pagepool import shared

        return getattr(shared, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

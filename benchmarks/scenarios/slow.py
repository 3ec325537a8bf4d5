# SPDX-License-Identifier: MIT
"""``page_pool03_slow``: every page leaves the pool and a new one comes in from the page allocator.

A foreign reference makes the put find a page that is not recyclable; refills take 64 at a time, as the pool's
always do. This is what a put costs when somebody else keeps the memory, and it needs the GIL.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.case import COMPILED_LOOP, Case, compiled
from benchmarks.scenarios.fast_path import FAST_PATH
from benchmarks.setting import Setting
from pagepool import PagePool
from pagepool._core import loops

__all__ = ["cases"]


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the slow path."""
    pool = stack.enter_context(PagePool(pool_size=1024))
    loop = compiled(loops.slow, pool)
    return [Case("slow", loop, "compiled alloc, put of a page that is kept", overhead=COMPILED_LOOP, against=FAST_PATH)]

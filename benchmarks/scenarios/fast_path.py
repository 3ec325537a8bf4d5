# SPDX-License-Identifier: MIT
"""``page_pool01_fast_path``: one page out of the owner's cache and back, compiled, without the GIL."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.case import COMPILED_LOOP, Case, compiled
from benchmarks.scenarios.baseline import FRESH_PAGE
from benchmarks.setting import Setting
from pagepool import PagePool
from pagepool._core import loops

__all__ = ["FAST_PATH", "cases"]

FAST_PATH = "fast_path"


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the compiled pair."""
    pool = stack.enter_context(PagePool(pool_size=1024))
    loop = compiled(loops.fast_path, pool)
    return [Case(FAST_PATH, loop, "compiled alloc + put, cache", overhead=COMPILED_LOOP, against=FRESH_PAGE)]

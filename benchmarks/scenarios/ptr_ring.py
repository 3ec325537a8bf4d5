# SPDX-License-Identifier: MIT
"""``page_pool02_ptr_ring``: each page goes back through the ring, as from a context that is not the owner's.

One page at a time takes the producer lock for every page; in batches of 64 one lock carries them all.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks.case import COMPILED_LOOP, Case, compiled
from benchmarks.scenarios.fast_path import FAST_PATH
from benchmarks.setting import Setting
from pagepool import PagePool
from pagepool._core import loops

__all__ = ["cases"]


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the ring, page by page and 64 at a time."""
    return [_case(stack, 1), _case(stack, 64)]


def _case(stack: ExitStack, n: int) -> Case:
    pool = stack.enter_context(PagePool(pool_size=1024))
    return Case(
        "ptr_ring" if n == 1 else f"ptr_ring, {n} at a time",
        compiled(partial(_through_ring, pool, n)),
        f"compiled alloc {n}, put {n} into the ring",
        pages=n,
        overhead=COMPILED_LOOP,
        against=FAST_PATH,
    )


def _through_ring(pool: PagePool, n: int, rounds: int) -> None:
    loops.bulk(pool, n, rounds, False)

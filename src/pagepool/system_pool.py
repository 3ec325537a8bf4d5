# SPDX-License-Identifier: MIT
"""One small pool for each thread, for code that needs a page now and then and has no pool of its own.

The kernel has one for each CPU (``system_page_pool``, 1 MiB of pages); a Python thread is our context, so ours has
one for each thread, of the same size.
"""

from __future__ import annotations

import threading

from pagepool._core.page_pool import PagePool

SYSTEM_POOL_ENTRIES = 256


class _PerThread(threading.local):
    pool: PagePool | None = None


_threads = _PerThread()


def system_pool() -> PagePool:
    """Return the calling thread's own pool of 4 KiB pages of anonymous memory, made when first asked for.

    Returns
    -------
    PagePool
        Owned by the calling thread, with a ring of 256 entries and no device. It goes when the thread does; pages that
        are still lent then stay good.

    Notes
    -----
    Context: any thread; no two ever share a pool.
    """
    pool = _threads.pool
    if pool is None or pool.closed:
        pool = _threads.pool = PagePool(pool_size=SYSTEM_POOL_ENTRIES)
    return pool

# SPDX-License-Identifier: MIT
"""How many pages of a pool Arrow may hold, so that a device never starves because a query is slow.

A number and the error that names it; who waits, drops or raises is decided elsewhere. Invariant: none of its own; the
count is the holding's, exact, and of all consumers of a pool together.
"""

from __future__ import annotations

import errno
from typing import Any

from pagepool import PagePool
from pagepool._core.params import PAGE_SIZE
from pagepool.errors import PagePoolError
from pagepool.integrations.arrow._holding import held_pages

__all__ = ["ArrowBacklogError", "Backlog"]

_MOST_PAGES = 1 << 16  # 256 MiB, where the pool itself knows no bound


class ArrowBacklogError(PagePoolError):
    """Arrow holds as many frames as it may.

    Attributes
    ----------
    errno : int
        ``ENOBUFS``; a stream's consumer sees it and the text.
    """

    errno = errno.ENOBUFS


class Backlog:
    """The bound of one pool.

    Parameters
    ----------
    pool : PagePool, or another process's
    limit : int, optional
        Pages; by default half of what the pool can have, so that the other half keeps the device going.
    """

    def __init__(self, pool: Any, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit}: Arrow must be allowed a page at least")
        most = int(pool.params.limit) or pool.arena.size_bytes // (PAGE_SIZE << int(pool.params.order))
        self.pool = pool
        self.limit = limit if limit is not None else max(min(most // 2, _MOST_PAGES), 1)

    @property
    def held(self) -> int:
        """int : pages that Arrow has now; of another process's pool, that this process has."""
        return held_pages(self.pool) if isinstance(self.pool, PagePool) else int(self.pool.lent)

    @property
    def room(self) -> int:
        """int : pages that it may still take, not negative."""
        return max(self.limit - self.held, 0)

    def error(self) -> ArrowBacklogError:
        """Return the error that says what is the matter and what helps."""
        return ArrowBacklogError(
            f"Arrow holds {self.held} frames of {self.pool!r} and may hold {self.limit}: let go of some, "
            "ask for less, copy what is to be kept, or drop what there is no room for"
        )

# SPDX-License-Identifier: MIT
"""Another process's pool, as the queue and the batches of this process see it.

It has the few doors of a pool that frames need, and no more: nothing can be allocated here. Invariant: arrays over its
arena are read-only where the mapping is, so that a store raises and does not kill the process.
"""

from __future__ import annotations

from typing import Any, NoReturn

from pagepool._core.params import PagePoolParams
from pagepool.errors import NotMappedError
from pagepool.shared._borrower import BorrowedPage, Borrower
from pagepool.shared.mapping import FileMapping

__all__ = ["BorrowedArena", "BorrowedPool"]


class BorrowedArena:
    """Where an arena is mapped here.

    Attributes
    ----------
    base_vaddr, size_bytes : int
    is_read_only : bool
    keep_alive : MappedRange
    """

    def __init__(self, mapping: FileMapping) -> None:
        self.base_vaddr = mapping.base_vaddr
        self.size_bytes = mapping.size_bytes
        self.is_read_only = mapping.is_read_only
        self.keep_alive = mapping.range


class BorrowedPool:
    """The pool behind an `AttachedQueue`: `pagepool.xdp.driver.FramePool`.

    Attributes
    ----------
    arena : BorrowedArena
    memory : FileMapping
    params : PagePoolParams
        Only `order` says something.
    borrower : Borrower
    """

    def __init__(self, borrower: Borrower, mapping: FileMapping, order: int) -> None:
        self.borrower = borrower
        self.arena = BorrowedArena(mapping)
        self.memory = mapping
        self.params = PagePoolParams(order=order)
        self.put_bulk = borrower.put_bulk

    def page(self, id: int, offset: int = 0, length: int = -1) -> BorrowedPage:
        """Make a handle for a page that the caller has; see `PagePool.page`."""
        return self.borrower.page(id, offset, length)

    def lease(self, ids: Any, offset: int = 0, length: int = -1) -> NoReturn:
        """Raise: a page of another process has one reference here, and `page` is the way to it."""
        raise BufferError(
            "frames of another process are not leased: batch.keep() gives a page for each, which is a tensor; "
            "headers(n) gathers"
        )

    def dma_addrs(self, ids: Any, out: Any) -> NoReturn:
        """Raise: no device of this process maps the memory."""
        raise NotMappedError(f"{self!r} is mapped for no device of this process")

    def claim(self) -> None:
        """Make the calling thread the one that takes."""
        self.borrower.claim()

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self.borrower.closed

    @property
    def lent(self) -> int:
        """Pages that this process has."""
        return self.borrower.lent

    def get_user(self) -> BorrowedPool:
        """Nothing: its life is its lender's."""
        return self

    def put_user(self) -> None:
        """Nothing, as `get_user`."""

    def __repr__(self) -> str:
        return f"<BorrowedPool: {self.lent} pages of another process>"

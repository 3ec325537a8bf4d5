# SPDX-License-Identifier: MIT
"""`AttachedQueue`: a receive queue whose device is another process.

The driver: what that process lends comes as batches, as from a NIC, and goes back when the batch is completed or the
last view of a kept frame is gone. Nothing is copied. Invariant: every page taken is given back exactly once, or is
taken back by the lender when this process ends; what the lender writes can be wrong, but never makes this process touch
memory that it has not mapped.
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from pagepool.drivers.rx_queue import RxQueue
from pagepool.errors import PagePoolError
from pagepool.shared._borrower import CLOSED, REVOKED, Borrower
from pagepool.shared.borrowed_pool import BorrowedPool
from pagepool.shared.mapping import FileMapping
from pagepool.shared.wire import Welcome
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import FramePool, U32Array, U64Array

__all__ = ["AttachedQueue", "AttachedStats", "RevokedError", "SharedBatch"]

_LOOK_EVERY: Final = 256  # empty polls of a spinning queue between two looks at the connection

_open_queues: weakref.WeakSet[AttachedQueue] = weakref.WeakSet()


class RevokedError(PagePoolError):
    """The lender has taken its pages back: what was read since then may be of other frames."""


class SharedBatch(XdpBatch):
    """Frames that another process lends; a batch as any other, with what was written beside each frame.

    Notes
    -----
    The frames are read-only where the mapping is: a store through `headers` or `frame` raises. ``tx``, ``pass_`` and
    ``redirect`` find nobody who takes the frames; they are given back and counted as dropped.
    """

    __slots__ = ("_block",)

    def __init__(self, driver: AttachedQueue, block: U32Array, count: int, offset: int) -> None:
        super().__init__(driver, block[0, :count], block[1, :count], block[2, :count] if offset < 0 else offset)
        self._block = block

    @property
    def queues(self) -> U32Array:
        """(n,) uint32 : where each frame came in, as the lender counts its pools."""
        return self._block[3, : len(self.ids)]

    @property
    def timestamps_ns(self) -> U64Array:
        """(n,) uint64 : ``CLOCK_MONOTONIC`` when it was lent, or what the lender gave."""
        return self._block[4:].reshape(-1).view(np.uint64)[: len(self.ids)]


@dataclass(frozen=True, slots=True)
class AttachedStats:
    """Figures of one attached queue.

    Attributes
    ----------
    taken, given, lent : int
        Frames taken, pages given back, pages with this process now.
    backlog : int
        Frames that wait to be taken.
    bad_descriptors : int
        Descriptors of no page, or of bytes outside theirs; dropped.
    bad_indexes : int
        Looks at an index that cannot be.
    rejected : int
        Ids given back that this process has not.
    bells : int
        Times the lender was woken.
    xdp, napi : dict
        Verdicts; polls and sleeps.
    """

    taken: int
    given: int
    lent: int
    backlog: int
    bad_descriptors: int
    bad_indexes: int
    rejected: int
    bells: int
    xdp: dict[str, int]
    napi: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name."""
        return asdict(self)


class AttachedQueue(RxQueue):
    """Not made by calling the class: `pagepool.attach` does.

    Attributes
    ----------
    pool : BorrowedPool
    arena_id : bytes
        Names the arena.
    writable : bool
        Whether frames can be written to.
    name, queue, napi, rxq, memory, xdp_stats
        See `RxQueue`.

    Notes
    -----
    ``poll``, ``poll_forever`` and ``run`` are those of every queue. They end, or return None, when the lender has
    closed and everything was taken; `is_finished` says so.

    Context: one thread polls; kept pages may be let go of in any. A forked child loses the queue, the parent keeps it;
    what the child had mapped it can still read.
    """

    def __init__(
        self, sock: socket.socket, welcome: Welcome, arena: FileMapping, rings: FileMapping, spin: bool
    ) -> None:
        self.arena_id = welcome.arena_id
        self.writable = welcome.writable
        self.is_connected = True
        self._spin = spin
        self._pid = os.getpid()
        self._block: U32Array | None = None
        self._empty_polls = 0
        borrower = Borrower(
            arena.base_vaddr,
            arena.size_bytes,
            welcome.order,
            welcome.writable,
            rings.base_vaddr,
            rings.size_bytes,
            sock.fileno(),
            (arena.range, rings.range),
        )
        sock.detach()  # the borrower's: it hangs up when the last page is back
        self._borrower = borrower
        super().__init__(
            f"shared-{welcome.arena_id[:4].hex()}",
            0,
            BorrowedPool(borrower, arena, welcome.order),
            fd=borrower.fileno(),
        )
        _open_queues.add(self)

    # -- receive -------------------------------------------------------------------------------------------------

    def _receive(self, budget: int) -> XdpBatch | None:
        borrower, block = self._borrower, self._block
        if borrower.state == REVOKED:
            self._revoked()
        if block is None or block.shape[1] != budget:
            block = self._block = np.empty((6, budget), np.uint32)
        count = borrower.take(block, budget)
        if not count:
            if not self._idle():
                return None
            count = borrower.take(block, budget)
            if not count:
                return None
        self._empty_polls = 0
        self._block = None  # the batch's now
        return SharedBatch(self, block, count, borrower.offset)

    def _idle(self) -> bool:
        """Make ready to sleep; true if something has come in between."""
        self._empty_polls += 1
        if self._spin:
            if self._empty_polls % _LOOK_EVERY == 0:
                self.is_connected &= self._borrower.is_connected()
            return False
        self.is_connected &= self._borrower.is_connected()
        return not self._borrower.arm()

    def _revoked(self) -> None:
        self.is_connected = False
        raise RevokedError(f"{self!r} was revoked: its pages are used for other frames")

    @property
    def is_revoked(self) -> bool:
        """Whether the lender has taken its pages back. Ask after reading what matters: False vouches for it."""
        return self._borrower.state == REVOKED

    @property
    def is_finished(self) -> bool:
        """Whether no frame will ever come again: the lender has closed, or is gone, and everything was taken."""
        return (not self.is_connected or self._borrower.state == CLOSED) and self._borrower.backlog == 0

    def _is_finished(self) -> bool:
        return self.is_finished

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when frames have come, or the lender is gone."""
        return self._borrower.fileno()

    # -- nobody takes frames here --------------------------------------------------------------------------------

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Take none: another process's pages are not this process's to send."""
        return 0

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Take none."""
        return 0

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Take none: pages go one way."""
        return 0

    def _flush(self) -> None:
        pass

    # -- the rest ------------------------------------------------------------------------------------------------

    def stats(self) -> AttachedStats:
        """Return the figures of this moment."""
        borrower = self._borrower
        return AttachedStats(
            borrower.taken,
            borrower.given,
            borrower.lent,
            borrower.backlog,
            borrower.bad_descriptors,
            borrower.bad_indexes,
            borrower.rejected,
            borrower.bells,
            self.xdp_stats.as_dict(),
            self.napi.stats.as_dict(),
        )

    def wait_until_revoked(self, timeout: float) -> bool:
        """Wait until the lender has hung up; false after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.is_connected and time.monotonic() < deadline:
            self.is_connected &= self._borrower.is_connected()
            time.sleep(0.001)
        return not self.is_connected

    def _close(self) -> None:
        # Pages that are kept stay good; the connection ends with the last of them.
        _open_queues.discard(self)
        self._borrower.close()

    def _abandon(self) -> None:
        self._closed = True
        self._borrower.abandon()

    def __repr__(self) -> str:
        how = "writable" if self.writable else "read-only"
        if self._closed:
            how = "closed" if os.getpid() == self._pid else "of the parent process"
        return f"<AttachedQueue {self.name}, {how}>"


def _abandon_after_fork() -> None:
    """In a forked child: the queue is the parent's, who alone gives pages back."""
    for queue in list(_open_queues):
        queue._abandon()
    _open_queues.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)

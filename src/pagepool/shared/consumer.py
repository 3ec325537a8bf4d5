# SPDX-License-Identifier: MIT
"""`Consumer`: one process that a pool is shared with, as the sharing process knows it.

It joins a connection, an identity and the lender's end of the rings. Invariant: its pages come home exactly once: given
back by it, or recalled when the books are closed, which is when nobody can write to them any more: at once for one that
maps the arena for reading, when its process is gone for one that may write.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pagepool.shared._borrower import CLOSED, REVOKED
from pagepool.shared._lender import Link
from pagepool.shared.peer import Peer

if TYPE_CHECKING:
    from pagepool.shared.shared_pool import SharedPool
    from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["Consumer", "ConsumerState", "ConsumerStats", "SharedHolder"]

_FIRST_PAUSE_S: Final = 50e-6
_LONGEST_PAUSE_S: Final = 1e-3
_MOST_BELLS: Final = 64


class ConsumerState(StrEnum):
    """Where a consumer is in its life.

    ``ATTACHED``
        Pages are lent to it.
    ``CLOSING``
        Nothing more is lent; it may still give back.
    ``QUARANTINED``
        It was revoked or has hung up, may write to the pages it had, and still runs: they wait for its end.
    ``GONE``
        Everything is home.
    """

    ATTACHED = "attached"
    CLOSING = "closing"
    QUARANTINED = "quarantined"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class SharedHolder:
    """Pages that are with one consumer.

    Attributes
    ----------
    name, pid, uid
        Who.
    count : int
        How many.
    oldest_s : float
        How long it has had the one it has had for longest, seconds.
    ids : tuple of int
        Which.
    state : ConsumerState
    writable : bool
        Whether it can write to them.
    """

    name: str
    pid: int
    uid: int
    count: int
    oldest_s: float
    ids: tuple[int, ...]
    state: ConsumerState
    writable: bool

    def __str__(self) -> str:
        how = "writable" if self.writable else "read-only"
        return (
            f"{self.count} pages with {self.name} (pid {self.pid}, uid {self.uid}, {how}, {self.state}), "
            f"oldest {self.oldest_s:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """Figures of one consumer.

    Attributes
    ----------
    sent, returned, recalled, outstanding : int
        Frames lent to it, pages it gave back, pages taken back from it, pages with it now.
    backlog : int
        Frames it has not looked at yet, as far as it says.
    backpressure : int
        Frames that found no room.
    bad_ids, bad_returns, bad_indexes : int
        What it wrote that was refused: ids of no page; pages it has not (never lent to it, or given back twice); looks
        at an index that cannot be.
    bells : int
        Times it was woken.
    """

    sent: int
    returned: int
    recalled: int
    outstanding: int
    backlog: int
    backpressure: int
    bad_ids: int
    bad_returns: int
    bad_indexes: int
    bells: int


class Consumer:
    """Not made by calling the class: `SharedPool.consumers` has them.

    It is a target of ``batch.redirect``: the frames of queues over the same arena are lent to it as they lie.

    Attributes
    ----------
    shared : SharedPool
    peer : Peer
        Who it is.
    writable : bool
        Whether it maps the arena for writing.
    state : ConsumerState
    link : Link
        The lender's end of its rings.

    Notes
    -----
    Context: any thread.
    """

    def __init__(self, shared: SharedPool, sock: socket.socket, peer: Peer, link: Link, *, writable: bool) -> None:
        self.shared = shared
        self.peer = peer
        self.writable = writable
        self.link = link
        self.state = ConsumerState.ATTACHED
        self._sock: socket.socket | None = sock
        self._lock = threading.RLock()
        self._one = (link,)

    # -- a redirect target (XdpDriver) ---------------------------------------------------------------------------

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Lend frames that a queue received; see `pagepool.xdp.XdpDriver.xdp_xmit`.

        Those of another arena are not taken.
        """
        return self.shared.lend_frames(self._one, source, ids, lengths, offsets)

    def xdp_flush(self) -> None:
        """Bring home what it gave back; called once per batch."""
        self.link.reap()

    # -- by hand -------------------------------------------------------------------------------------------------

    def send(self, what: Any, lengths: Any = None, offsets: Any = 0, **how: Any) -> int:
        """`SharedPool.send` to this consumer alone."""
        return self.shared.send(what, lengths, offsets, to=self, **how)

    def wait_for_room(self, frames: int = 1, timeout: float | None = None) -> bool:
        """Wait until so many frames would find room; false after `timeout` seconds, or if it is not served any more.

        Notes
        -----
        Sleeps without the GIL between looks, 50 us at first and 1 ms at last.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE_S
        while self.link.open:
            if self.link.slots - self.link.outstanding >= min(frames, self.link.slots):
                return True
            if self.link.reap():
                continue
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return False

    # -- the end -------------------------------------------------------------------------------------------------

    def revoke(self, *, kill: bool = False) -> int:
        """End it: nothing more is lent, and what it has comes home as soon as that is safe.

        Parameters
        ----------
        kill : bool
            Also end its process (SIGKILL), which is the only way to take memory out of it.

        Returns
        -------
        int
            Pages that are quarantined: with a process that could write to them and still runs. 0 for one that maps the
            arena for reading: its pages are home now, and what it reads from here on is what they are used for next.

        Raises
        ------
        PermissionError
            `kill`, and the process belongs to somebody else; it is revoked all the same.
        """
        with self._lock:
            if self.state is ConsumerState.GONE:
                return 0
            self.link.stop(REVOKED)
            self._hang_up()
            if kill:
                try:
                    self.peer.kill()
                finally:
                    self.settle()
            else:
                self.settle()
            return self.link.outstanding

    def begin_close(self) -> None:
        """Say that nothing more will come; it may still give back."""
        with self._lock:
            if self.state is ConsumerState.ATTACHED:
                self.state = ConsumerState.CLOSING
                self.link.stop(CLOSED)
                if self._sock is not None:
                    try:
                        self._sock.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # it has hung up meanwhile

    def hung_up(self) -> None:
        """Its end of the connection is closed: it has ended, or is about to."""
        with self._lock:
            if self.state is not ConsumerState.GONE:
                self.link.stop(CLOSED)
                try:
                    self.link.reap()
                finally:
                    if self.link.outstanding:
                        self.link.stop(REVOKED)  # said before the first of its pages can be another's
                    self._hang_up()
                    self.settle()

    def has_ended(self) -> bool:
        """Whether its process is gone."""
        with self._lock:
            return self.state is ConsumerState.GONE or not self.peer.is_alive

    def settle(self) -> bool:
        """Close the books if nobody can write to its pages any more; true if they are closed."""
        with self._lock:
            if self.state is ConsumerState.GONE:
                return True
            if self.writable and self.link.outstanding and self.peer.is_alive:
                self.state = ConsumerState.QUARANTINED
                return False
            self.state = ConsumerState.GONE
            self._hang_up()
            try:
                self.link.recall()
            finally:
                self.shared.forget(self)
                self.peer.close()
            return True

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors."""
        self._lock = threading.RLock()
        self.state = ConsumerState.GONE
        if self._sock is not None:
            self._sock.close()
        self.peer.close()

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self.shared.unwatch(sock.fileno())
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """The lender's end of the connection, -1 once closed."""
        return -1 if self._sock is None else self._sock.fileno()

    def drain_bells(self) -> bool:
        """Read bells away; false if the other side has hung up.

        Not until there are none: whoever rings faster than they are read would keep the reader for ever.
        """
        with self._lock:  # or the descriptor could be closed, and be another's, between two of these lines
            if self._sock is None:
                return True
            try:
                for _ in range(_MOST_BELLS):
                    if not self._sock.recv(64, socket.MSG_DONTWAIT):
                        return False
            except BlockingIOError:
                pass
            except OSError:
                return False
            return True

    def holder(self) -> SharedHolder:
        """Say what it has."""
        link, peer = self.link, self.peer
        ids = tuple(link.held_ids())
        return SharedHolder(peer.name, peer.pid, peer.uid, len(ids), link.oldest_s(), ids, self.state, self.writable)

    def stats(self) -> ConsumerStats:
        """Return the figures of this moment."""
        link = self.link
        return ConsumerStats(
            link.sent,
            link.returned,
            link.recalled,
            link.outstanding,
            link.backlog,
            link.backpressure,
            link.bad_ids,
            link.bad_returns,
            link.bad_indexes,
            link.bells,
        )

    def __repr__(self) -> str:
        how = "writable" if self.writable else "read-only"
        return f"<Consumer {self.peer}, {how}, {self.state}: {self.link.outstanding} pages>"

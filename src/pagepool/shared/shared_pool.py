# SPDX-License-Identifier: MIT
"""`SharedPool`: the pages of a pool, lent to other processes without a copy.

The arena is one memory file, committed whole and sealed; consumers map it, get descriptors through a ring and give
pages back through another. It is not a pool itself: pages come from the pools over that arena and go home to them.
Invariant (`check` proves it): each page that is with a consumer is lent by its pool, is in the books once for each
consumer that has it, and comes home exactly once, whatever those processes do.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from pagepool._core.page import Page
from pagepool._core.page_pool import PagePool
from pagepool._core.params import PAGE_SIZE
from pagepool.errors import PageLeakWarning, PoolBusyError, PoolClosedError
from pagepool.memory import PageAllocator
from pagepool.shared._lender import LEAST_SLOTS, MOST_SLOTS, Lender, Link
from pagepool.shared.consumer import Consumer, ConsumerState, SharedHolder
from pagepool.shared.door import open_door
from pagepool.shared.everybody import figures_by_name, hang_up_on, wait_for_pages
from pagepool.shared.peer import Peer
from pagepool.shared.service import Service
from pagepool.shared.shareable import check_shareable, inode_of, make_shareable
from pagepool.shared.shared_stats import SharedStats
from pagepool.shared.wire import HandshakeError, Hello
from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["SharedPool"]

_ANY: Final = bytes(16)
_BUSY_S: Final = 1.0

_open: weakref.WeakSet[SharedPool] = weakref.WeakSet()


class SharedPool:
    """Share the pages of a pool with other processes.

    Parameters
    ----------
    pool : PagePool or sequence of PagePool, optional
        Pools whose pages are lent, all there are and ever were over one memory file: made with ``zero=True`` and
        ``memory=PageAllocator(size, "memfd", commit=True)``, as the pool of
        ``AfXdpQueue(memory="memfd", params=PagePoolParams(zero=True))`` is. By default one is made. No other pool can
        be made over that memory afterwards: consumers see all of it.
    pages : int
        Pages of 4 KiB in the arena that is made by default, rounded up to 2 MiB.
    max_pages : int
        The most that one consumer may have at once, a power of two; entries of its rings.
    writable : bool
        Whether consumers may ask for a mapping they can write to. If not, the kernel refuses it to everybody for good.
    path : path, optional
        Where to listen for consumers; by default they come through `connect` only.
    mode : int
        Permissions of that socket.
    uids : collection of int, optional
        Whose processes are served; by default this user's and root's.

    Raises
    ------
    ValueError
        The memory cannot be shared: private, still growing, not zeroed, or used by other pools.
    OSError
        The path is taken, or the kernel does not know the seals (before Linux 5.1).

    Attributes
    ----------
    pool : PagePool
        The first of the pools.
    pools : tuple of PagePool
    arena_id : bytes
        16 random bytes that name the arena to whoever attaches.
    lender : Lender
        The books.

    Notes
    -----
    A daemon thread takes connections, brings pages home and notices deaths; it sleeps when there is nothing to do.

    Context: any thread; one lock, never held over Python. Pages go home to the caches of the pools where the pools'
    owner brings them home (`send`, `reap`, the end of a redirected batch), else through their rings. A forked child
    loses it, the parent keeps it.
    """

    closing = True  # until it is made: what was never made needs no closing

    def __init__(
        self,
        pool: PagePool | Sequence[PagePool] | None = None,
        *,
        pages: int = 4096,
        max_pages: int = 1024,
        writable: bool = False,
        path: str | os.PathLike[str] | None = None,
        mode: int = 0o600,
        uids: Sequence[int] | None = None,
    ) -> None:
        if max_pages & (max_pages - 1) or not LEAST_SLOTS <= max_pages <= MOST_SLOTS:
            raise ValueError(f"max_pages {max_pages}: a power of two from {LEAST_SLOTS} to {MOST_SLOTS}")
        self._own_allocator: PageAllocator | None = None
        service: Service | None = None
        pools = (make_shareable(pages),) if pool is None else (pool,) if isinstance(pool, PagePool) else tuple(pool)
        try:
            if pool is None:
                self._own_allocator = pools[0].memory
            check_shareable(pools)
            self.pool: Any = pools[0]
            self.pools = pools
            self.allocator: PageAllocator = self.pool.memory
            self.order = int(self.pool.params.order)
            self.allocator.freeze(writers=writable)
            self.arena_inode = inode_of(self.allocator)
            self.arena_id = secrets.token_bytes(16)
            self.max_pages = max_pages
            self.writable = writable
            self.uids = frozenset({os.geteuid(), 0} if uids is None else uids)
            self.lender = Lender(self.pool.arena)
            for one in pools:
                self.lender.add_source(one)
            self.pool.arena.only_pools = "it is shared with other processes, which see all of its pages"
            self.consumers: tuple[Consumer, ...] = ()
            self._links: tuple[Link, ...] = ()
            self._queues = {id(one): number for number, one in enumerate(pools)}
            self._lock = threading.Condition()
            self._foreign = self._refused = self._attached = self._lost = 0
            self._last_refusal = ""
            self._path: Path | None = None
            self.service = service = Service(self)
            if path is not None:
                service.listen(open_door(Path(path), mode))
                self._path = Path(path)
        except BaseException:
            if service is not None:
                service.abandon()
            if self._own_allocator is not None:
                pools[0].close()
                self._own_allocator.close()
            raise
        self.closing = False
        self.service.start()
        _open.add(self)

    # -- who is served -------------------------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        """Make a connection for one consumer, and return its end.

        Hand it to the other process (``pass_fds`` of `subprocess`, an argument of `multiprocessing`, ``SCM_RIGHTS``),
        close it here, and call ``pagepool.attach`` with it there.
        """
        self._must_be_open()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.service.add_visitor(ours, invited=True)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs

    def wait_for_consumers(self, count: int = 1, timeout: float | None = None) -> bool:
        """Wait until so many are attached; false after `timeout` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.consumers) >= count, timeout)

    def wait_until_gone(self, timeout: float | None = None) -> bool:
        """Wait until no consumer is left, quarantined ones included; false after `timeout` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: not self.consumers, timeout)

    # -- lending -------------------------------------------------------------------------------------------------

    def send(
        self,
        what: Any,
        lengths: Any = None,
        offsets: Any = 0,
        *,
        to: Consumer | Sequence[Consumer] | None = None,
        queue: int = 0,
        timestamps_ns: Any = None,
    ) -> int:
        """Lend pages.

        Parameters
        ----------
        what : Page, or (n,) uint32
            One page by its handle, which is dead afterwards; or ids that the caller holds.
        lengths : int or (n,) uint32, optional
            Bytes of each frame; by default all of the page, or of the handle's window.
        offsets : int or (n,) uint32
            Bytes from each page's first byte to its frame's; not for a handle, which has its own.
        to : Consumer or sequence of them, optional
            Who gets them; all by default, each page to each of them.
        queue : int
            Written beside each frame.
        timestamps_ns : (n,) uint64, optional
            ``CLOCK_MONOTONIC``; now, by default.

        Returns
        -------
        int
            How many of the first were taken by at least one; those are no longer the caller's. The rest found no room
            (`Consumer.wait_for_room`), or was not the caller's to lend, and is still the caller's.

        Raises
        ------
        PagePoolError
            The handle is dead, or has views.
        PoolClosedError
            After `close`.

        Notes
        -----
        Also brings home what those consumers have given back. About a microsecond for 64 pages; no system call, but
        where a consumer sleeps.
        """
        self._must_be_open()
        links = self._links if to is None else (to.link,) if isinstance(to, Consumer) else tuple(c.link for c in to)
        for link in links:
            link.reap()
        if isinstance(what, Page):
            return int(self.lender.lend_page(links, what, len(what) if lengths is None else int(lengths), queue))
        ids = np.ascontiguousarray(what, np.uint32)
        if lengths is None:
            lengths = (PAGE_SIZE << self.order) - (0 if np.ndim(offsets) else int(offsets))
        if np.ndim(lengths) == 0:
            lengths = np.full(len(ids), lengths, np.uint32)
        lengths = np.ascontiguousarray(lengths, np.uint32)
        offsets = np.ascontiguousarray(offsets, np.uint32) if np.ndim(offsets) else int(offsets)
        if timestamps_ns is not None:
            timestamps_ns = np.ascontiguousarray(timestamps_ns, np.uint64)
        return self.lender.lend(links, None, ids, lengths, offsets, queue, timestamps_ns)

    def lend_frames(
        self, links: tuple[Link, ...], source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array
    ) -> int:
        """Lend frames of a queue; those of another arena are refused and counted."""
        if self.closing or source.arena is not self.lender.arena:
            with self._lock:
                self._foreign += len(ids)
            return 0
        return self.lender.lend(links, source, ids, lengths, offsets, self._queues.get(id(source), 0), None)

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Lend frames to every consumer: ``batch.redirect(shared)``; see `pagepool.xdp.XdpDriver.xdp_xmit`."""
        return self.lend_frames(self._links, source, ids, lengths, offsets)

    def xdp_flush(self) -> None:
        """Bring home what was given back; called once per batch."""
        self.reap()

    def reap(self) -> int:
        """Bring home what consumers have given back; return how many pages came.

        The thread does so too, within milliseconds; here it happens now, and into the caches of the caller's pools.
        """
        return sum(link.reap() for link in self._links)

    # -- figures and proofs --------------------------------------------------------------------------------------

    def holders(self) -> list[SharedHolder]:
        """Which processes have pages, most first; quarantined ones included."""
        found = [consumer.holder() for consumer in self.consumers if consumer.link.outstanding]
        return sorted(found, key=lambda holder: -holder.count)

    def stats(self) -> SharedStats:
        """Return the figures of this moment, and those of each consumer."""
        return SharedStats(
            attached=self._attached,
            refused=self._refused,
            last_refusal=self._last_refusal,
            lost=self._lost,
            shared=self.lender.nr_shared,
            quarantined=sum(
                consumer.link.outstanding for consumer in self.consumers if consumer.state is ConsumerState.QUARANTINED
            ),
            rejected=self.lender.rejected,
            foreign=self._foreign,
            consumers=figures_by_name(self.consumers),
        )

    def check(self) -> None:
        """Prove conservation: the books agree with themselves and with the pools, and each pool with itself.

        Raises
        ------
        PagePoolError
            Saying what does not add up.
        """
        self.lender.check()
        for pool in self.pools:
            pool.check()

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, timeout: float = 1.0) -> list[SharedHolder]:
        """Stop lending, let consumers finish, then take back what they still have. Idempotent.

        Parameters
        ----------
        timeout : float
            Seconds that consumers have to give back by themselves; they are told at once.

        Returns
        -------
        list of SharedHolder
            Quarantined pages: with processes that could write to them and still run. They come home when those end, for
            as long as this process lives.

        Notes
        -----
        What a consumer has mapped stays mapped and readable in it, as long as it likes.
        """
        if self.closing:
            return self.holders() if hasattr(self, "lender") else []
        self.closing = True
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        everybody = self.consumers
        for consumer in everybody:
            consumer.begin_close()
        try:
            wait_for_pages(everybody, timeout)
        finally:
            hang_up_on(everybody)
            self.service.wake()
            left = self.holders()
            if not left:
                self.service.join(5.0)
            _open.discard(self)
            if self._own_allocator is not None:
                self._close_pool()
                self._own_allocator.close()
        return left

    def _close_pool(self) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self.pool.close()
                return
            except PoolBusyError:  # its owner, on another thread, is about to find out
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def __enter__(self) -> SharedPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self.close()
        if left and kind is None:
            warnings.warn(f"{self!r} was left with pages out: " + "; ".join(map(str, left)), PageLeakWarning, 2)

    def __repr__(self) -> str:
        state = "closed" if self.closing else f"{len(self.consumers)} consumers"
        return f"<SharedPool over {self.pool!r}, {state}>"

    # -- for the service thread ----------------------------------------------------------------------------------

    def check_welcome(self, peer: Peer, hello: Hello) -> None:
        """Raise `HandshakeError` if that process is not to be served."""
        if peer.uid not in self.uids:
            raise HandshakeError(f"uid {peer.uid} is not served here")
        if hello.writable and not self.writable:
            raise HandshakeError("this pool is shared for reading only")
        if hello.arena_id not in (_ANY, self.arena_id):
            raise HandshakeError("this is another arena than the one you want")
        if self.closing:
            raise HandshakeError("the pool is closed")

    def welcome(self, consumer: Consumer) -> None:
        """Enter a consumer."""
        with self._lock:
            self.consumers = (*self.consumers, consumer)
            self._links = tuple(one.link for one in self.consumers)
            self._attached += 1
            self._lock.notify_all()
        if self.closing:
            consumer.hung_up()

    def forget(self, consumer: Consumer) -> None:
        """Strike a consumer out whose pages are home."""
        with self._lock:
            if consumer in self.consumers:
                self._lost += consumer.link.recalled
            self.consumers = tuple(one for one in self.consumers if one is not consumer)
            self._links = tuple(one.link for one in self.consumers)
            self._lock.notify_all()

    def unwatch(self, fd: int) -> None:
        """Have the thread forget a connection."""
        self.service.unwatch(fd)

    def note_refusal(self, why: str) -> None:
        """Count a visitor that was sent away."""
        self._refused += 1
        self._last_refusal = why

    # -- the rest ------------------------------------------------------------------------------------------------

    def _must_be_open(self) -> None:
        if self.closing:
            raise PoolClosedError(f"{self!r} is closed")

    def _abandon(self) -> None:
        self.closing = True
        self._own_allocator = None
        self._lock = threading.Condition()  # a thread of the parent may have held it
        self.lender.abandon()
        self.service.abandon()
        for consumer in self.consumers:
            consumer.abandon()
        self.consumers, self._links = (), ()


def _abandon_after_fork() -> None:
    """In a forked child: connections and books are the parent's."""
    for shared in list(_open):
        shared._abandon()
    _open.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)

# SPDX-License-Identifier: MIT
"""What one AF_XDP queue is made of, opened in the kernel's order and closed in the reverse.

It moves no frame: `pagepool.drivers.af_xdp.queue` does. Invariant: after `QueueParts.close`, or a failed
construction, the interface is as it was and every page that a ring or the kernel had is back in its pool.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pagepool._core.page_pool import PagePool
from pagepool._core.params import DmaDir, PagePoolParams, PPFlag
from pagepool.drivers.af_xdp._rings import XskRings
from pagepool.drivers.af_xdp.bpf_object import XdpObject
from pagepool.drivers.af_xdp.egress import Egress
from pagepool.drivers.af_xdp.home_ns import HomeNs
from pagepool.drivers.af_xdp.promiscuous import Promiscuous
from pagepool.drivers.af_xdp.socket import BindFlag, RingSizes, XdpSocket
from pagepool.drivers.af_xdp.steering import Steering, WantedMode, close_steering, open_steering
from pagepool.drivers.af_xdp.umem_area import UmemArea
from pagepool.drivers.af_xdp.wakeup import Wakeup
from pagepool.errors import DeviceError, PoolBusyError
from pagepool.memory import MemoryKind, PageAllocator
from pagepool.xdp import FrameMemory

if TYPE_CHECKING:
    from pagepool.drivers.af_xdp.queue import AfXdpQueue

__all__ = ["QueueParts", "pages_for"]

_SPARE_PAGES: Final = 512  # beyond what the rings can hold: batches, and what the user keeps
_BUSY_POLL_US: Final = 50
_FLUSH_S: Final = 0.05
_ZEROCOPY_QUIET_S: Final = 0.05
_BUSY_S: Final = 1.0


class QueueParts:
    """The parts of one queue; parameters are those of `AfXdpQueue`.

    Attributes
    ----------
    home, promiscuous, steering, socket, area, rings, wakeup, egress
        One file of this package each.
    pool : PagePool
        Over the area.
    is_zerocopy : bool
        Whether the device itself reads and writes the pages.
    """

    def __init__(
        self,
        ifname: str,
        queue: int,
        *,
        frames: int | None,
        sizes: RingSizes,
        params: PagePoolParams | None,
        filter: str,
        program: XdpObject | str | os.PathLike[str] | None,
        timestamps: bool,
        mode: WantedMode,
        zerocopy: bool | None,
        busy_poll: bool,
        need_wakeup: bool,
        promiscuous: bool,
        share_umem_with: AfXdpQueue | None,
        memory: PageAllocator | MemoryKind | str | None,
    ) -> None:
        self.queue = queue
        self.is_zerocopy = False
        obj = f"{ifname} queue {queue}"
        other = share_umem_with.parts if share_umem_with is not None else None
        frames = frames or pages_for(sizes)
        with ExitStack() as undo:
            ifindex = _ifindex(ifname, obj)
            self.home = HomeNs()
            undo.callback(self.home.close)
            self.promiscuous = Promiscuous(ifindex, ifname) if promiscuous else None
            if self.promiscuous is not None:
                undo.callback(self.promiscuous.close)
            # The program first: some drivers set their queues up anew for it, and a map without sockets
            # passes.
            self.steering: Steering = open_steering(ifname, ifindex, queue, filter, mode, program, timestamps)
            undo.callback(close_steering, self.steering, queue, filter)
            self.socket = XdpSocket(obj)
            undo.callback(self.socket.close)
            self.area: UmemArea = other.area.get() if other else UmemArea(self.socket, 4096 * frames, memory)
            undo.callback(self.area.put)
            self.pool = self._make_pool(params or PagePoolParams(), frames)
            undo.callback(self._close_pool)
            self.pool.alloc_pages().put()  # the first page maps the arena: this registers the UMEM
            self.socket.set_rings(sizes)
            if busy_poll:
                self.socket.set_busy_poll(_BUSY_POLL_US)
            self.rings = self._make_rings(need_wakeup, busy_poll)
            undo.callback(self.rings.take_back)
            undo.callback(self._close_socket)
            self.rings.fill_up()
            flags = self._bind_flags(zerocopy, need_wakeup)
            self.socket.bind(ifindex, queue, flags, share_umem_with=other.socket if other else None)
            self.socket.set_tx_budget(sizes.tx)
            self.is_zerocopy = self.socket.is_zerocopy()
            self.wakeup = Wakeup(self.socket.fileno())
            undo.callback(self.wakeup.close)
            self.egress = Egress(self.rings, self.steering, self.home, queue)
            undo.callback(self.egress.close)
            undo.callback(self._flush)
            self._undo = undo.pop_all()

    def start(self, memory: FrameMemory) -> None:
        """Let frames come in."""
        self.egress.memory = memory
        self._undo.callback(self.steering.remove, self.queue)
        self.steering.insert(self.queue, self.socket.fileno())

    def close(self) -> None:
        """Undo everything, last first; every step is taken, whatever the others raise. Idempotent.

        No frame comes in any more, what is queued is sent (50 ms at most), the socket goes, the pages come
        home.
        """
        self._undo.close()

    def abandon(self) -> None:
        """In a forked child: let go of descriptors and mappings, touch nothing that the parent uses."""
        self._undo.pop_all()
        self.rings.abandon()
        self.socket.close()
        self.wakeup.close()
        self.home.close()
        if self.promiscuous is not None:
            self.promiscuous.close()

    def _make_pool(self, params: PagePoolParams, frames: int) -> PagePool:
        if params.order:
            raise ValueError(f"order {params.order}: an AF_XDP pool has pages of 4096 bytes, order 0")
        return PagePool(
            replace(
                params,
                flags=PPFlag.DMA_MAP,
                dev=self.area.device,
                dma_dir=DmaDir.BIDIRECTIONAL,
                memory=self.area.allocator,
                pool_size=params.pool_size or 1 << (frames - 1).bit_length(),
            )
        )

    def _make_rings(self, need_wakeup: bool, busy_poll: bool) -> XskRings:
        sock = self.socket
        return XskRings(self.pool, sock.fileno(), sock.rx, sock.tx, sock.fill, sock.completion, need_wakeup, busy_poll)

    def _bind_flags(self, zerocopy: bool | None, need_wakeup: bool) -> BindFlag:
        flags = BindFlag.USE_NEED_WAKEUP if need_wakeup else BindFlag(0)
        if zerocopy:
            flags |= BindFlag.ZEROCOPY
        elif zerocopy is False or self.steering.mode == "generic":
            flags |= BindFlag.COPY
        return flags

    def _flush(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        while self.rings.nr_tx_queued and not self.egress.refusal and time.monotonic() < deadline:
            self.egress.kick()
            self.rings.reap()

    def _close_socket(self) -> None:
        self.rings.close()
        self.socket.close()
        if self.is_zerocopy:
            # The driver gives its descriptors back a little after the close; until then it may write to
            # pages.
            time.sleep(_ZEROCOPY_QUIET_S)

    def _close_pool(self) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                return self.pool.close()
            except PoolBusyError:  # a polling thread is about to find the queue closed
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)


def pages_for(sizes: RingSizes) -> int:
    """Return how many pages such rings can hold at once, and some to spare."""
    return sizes.rx + sizes.fill + sizes.tx + _SPARE_PAGES


def _ifindex(ifname: str, obj: str) -> int:
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        hint = "no such interface in this network namespace"
        raise DeviceError(error.errno or errno.ENODEV, "open AF_XDP", obj, hint) from None

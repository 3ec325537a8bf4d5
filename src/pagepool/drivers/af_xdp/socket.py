# SPDX-License-Identifier: MIT
"""One AF_XDP socket: UMEM registration, ring sizes, ring mappings, bind, options and statistics.

This file sets a socket up and tells how it is; it moves no frame (that is :mod:`._rings`) and owns no memory
(that is the arena). The steps must come in the kernel's order: UMEM (or a shared one), rings, bind. The
socket and its ring mappings are one thing: :meth:`XdpSocket.close` unmaps first, for a mapping keeps the
queue busy as the descriptor does.

Sources: Documentation/networking/af_xdp.rst, ``linux/if_xdp.h``, socket(7), mmap(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as _socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from types import TracebackType
from typing import Final, Self

from pagepool.drivers.af_xdp.ring_map import RingMap, RingOffsets
from pagepool.errors import DeviceError

__all__ = ["BindFlag", "RingSizes", "XdpSocket", "XdpStatistics"]

_AF_XDP, _SOL_XDP = 44, 283
_MMAP_OFFSETS, _RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 2, 3, 4, 5, 6
_STATISTICS, _OPTIONS, _MAX_TX_SKB_BUDGET = 7, 8, 9
_PGOFF_RX, _PGOFF_TX, _PGOFF_FILL, _PGOFF_COMPLETION = 0, 0x80000000, 0x100000000, 0x180000000
_SO_BUSY_POLL, _SO_PREFER_BUSY_POLL, _SO_BUSY_POLL_BUDGET = 46, 69, 70
_MOST_QUEUE = (1 << 32) - 1  # what sockaddr_xdp can say
# A closed socket frees its queue 5 to 26 ms later, a second under load: wait long where it may have been ours.
_CLOSE_WAIT_S: Final = 0.5
_OWN_CLOSE_WAIT_S: Final = 4.0

_libc = ctypes.CDLL(None, use_errno=True)
_last_close = -_OWN_CLOSE_WAIT_S  # monotonic seconds


class BindFlag(IntFlag):
    """``sxdp_flags`` of bind(2)."""

    SHARED_UMEM = 1 << 0
    COPY = 1 << 1
    ZEROCOPY = 1 << 2
    USE_NEED_WAKEUP = 1 << 3
    USE_SG = 1 << 4


@dataclass(frozen=True)
class RingSizes:
    """Entries per ring, each a power of two; 0 leaves the ring out."""

    rx: int = 2048
    tx: int = 2048
    fill: int = 4096
    completion: int = 2048


@dataclass(frozen=True)
class XdpStatistics:
    """``XDP_STATISTICS`` of one socket; all count frames or descriptors since the socket was made."""

    rx_dropped: int
    rx_invalid_descs: int
    tx_invalid_descs: int
    rx_ring_full: int
    rx_fill_ring_empty_descs: int
    tx_ring_empty_descs: int


class XdpSocket:
    """An AF_XDP socket and its mapped rings.

    Parameters
    ----------
    obj : str
        How error messages call the queue, ``"eth0 queue 3"``.

    Attributes
    ----------
    rx, tx, fill, completion : RingMap or None
        The mapped rings after :meth:`set_rings`; None for rings of size 0 and after :meth:`close`.

    Context: any thread, one at a time. Works from another network namespace than the one it was made in.
    """

    def __init__(self, obj: str = "socket") -> None:
        self.obj = obj
        self.rx: RingMap | None = None
        self.tx: RingMap | None = None
        self.fill: RingMap | None = None
        self.completion: RingMap | None = None
        self._socket: _socket.socket | None = None
        hints = {
            errno.EPERM: "needs CAP_NET_RAW",
            errno.EAFNOSUPPORT: "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
        }
        with self._calling("socket AF_XDP", hints):
            self._socket = _socket.socket(_AF_XDP, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)

    def register_umem(
        self, vaddr: int, size_bytes: int, *, chunk_bytes: int = 4096, headroom_bytes: int = 0, flags: int = 0
    ) -> None:
        """Register memory as this socket's UMEM: all of it is pinned until the last socket over it is closed.

        Parameters
        ----------
        vaddr : int
            First byte, page-aligned.
        size_bytes : int
            A multiple of ``chunk_bytes``.
        chunk_bytes : int
            2048 or 4096.
        headroom_bytes : int
            Room that stays free before each frame, beside the kernel's own 256 bytes.
        """
        hints = {
            errno.ENOBUFS: "over RLIMIT_MEMLOCK; needs CAP_IPC_LOCK, a higher limit, or a smaller pool",
            errno.EFAULT: "the memory is not all mapped and writable, or is a file's shared mapping",
            errno.EINVAL: "memory not page-aligned, or chunk size or headroom out of range",
            errno.EBUSY: "the socket has a UMEM already",
            errno.ENOMEM: "not enough memory to pin",
        }
        request = struct.pack("=QQIIII", vaddr, size_bytes, chunk_bytes, headroom_bytes, flags, 0)
        with self._calling(f"register UMEM of {size_bytes >> 10} KiB", hints):
            self._open.setsockopt(_SOL_XDP, _UMEM_REG, request)

    def set_rings(self, sizes: RingSizes) -> None:
        """Make and map the rings.

        Before `bind`, so that the fill ring has pages when the device starts.
        """
        rings = (
            ("fill", _FILL_RING, sizes.fill),
            ("completion", _COMPLETION_RING, sizes.completion),
            ("rx", _RX_RING, sizes.rx),
            ("tx", _TX_RING, sizes.tx),
        )
        hints = {errno.EINVAL: "ring sizes are powers of two", errno.ENOMEM: "ring too large"}
        for name, option, size in rings:
            if size:
                with self._calling(f"make {name} ring of {size} entries", hints):
                    self._open.setsockopt(_SOL_XDP, option, size)
        self._map_rings(sizes)

    def bind(self, ifindex: int, queue: int, flags: BindFlag, *, share_umem_with: XdpSocket | None = None) -> None:
        """Bind to a receive queue: frames may come from here on.

        Parameters
        ----------
        ifindex : int
            The interface, in the calling thread's network namespace.
        queue : int
            Receive and transmit queue index.
        flags : BindFlag
            Ignored with ``share_umem_with``: the mode is inherited, any other flag would be EINVAL.
        share_umem_with : XdpSocket, optional
            A bound socket whose UMEM to use.

        Raises
        ------
        DeviceError
            EBUSY only after one second of retries: a socket that was just closed holds its queue a moment
            longer.
        """
        shared_fd = 0
        if share_umem_with is not None:
            flags, shared_fd = BindFlag.SHARED_UMEM, share_umem_with.fileno()
        if not 0 <= queue <= _MOST_QUEUE:
            raise DeviceError(errno.EINVAL, "bind AF_XDP", self.obj, "no such queue")
        request = struct.pack("=HHIII", _AF_XDP, flags, ifindex, queue, shared_fd)
        deadline = max(time.monotonic() + _CLOSE_WAIT_S, _last_close + _OWN_CLOSE_WAIT_S)
        # The one call that Python's socket module refuses for this family.
        while _libc.bind(self.fileno(), request, len(request)) != 0:
            error = ctypes.get_errno()
            if error != errno.EBUSY or time.monotonic() > deadline:
                raise DeviceError(error, "bind AF_XDP", self.obj, _bind_hint(error, flags))
            time.sleep(0.002)

    def fileno(self) -> int:
        """Return the descriptor, -1 after :meth:`close`."""
        return self._socket.fileno() if self._socket is not None else -1

    def is_zerocopy(self) -> bool:
        """Return whether the device really reads and writes the UMEM itself (``XDP_OPTIONS``)."""
        (flags,) = struct.unpack("=I", self._option(_OPTIONS, 4))
        return bool(flags & 1)

    def statistics(self) -> XdpStatistics:
        """Return the kernel's counters of this socket."""
        return XdpStatistics(*struct.unpack("=6Q", self._option(_STATISTICS, 48)))

    def check_device(self) -> None:
        """Raise DeviceError (ENETDOWN) if the device has gone; poll(2) alone stays silent about it."""
        with self._calling("getsockopt AF_XDP", {}):
            error = self._open.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            raise DeviceError(error, "AF_XDP socket", self.obj, "the interface is gone or was taken down for good")

    def set_tx_budget(self, frames: int) -> bool:
        """Let one kick send up to ``frames`` (32 to the tx ring's size) in copy mode; False on an older
        kernel.
        """
        try:
            self._open.setsockopt(_SOL_XDP, _MAX_TX_SKB_BUDGET, frames)
        except OSError:
            return False
        return True

    def set_busy_poll(self, microseconds: int, budget: int = 64) -> None:
        """Prefer busy polling: the kernel runs the device's NAPI inside our kick (no effect on veth)."""
        hints = {errno.EPERM: "needs CAP_NET_ADMIN", errno.EINVAL: "budget out of range"}
        options = ((_SO_PREFER_BUSY_POLL, 1), (_SO_BUSY_POLL, microseconds), (_SO_BUSY_POLL_BUDGET, budget))
        with self._calling("set busy poll", hints):
            for option, value in options:
                self._open.setsockopt(_socket.SOL_SOCKET, option, value)

    def close(self) -> None:
        """Unmap the rings, then close the socket. Idempotent; the kernel frees the queue a few ms later."""
        for ring in (self.rx, self.tx, self.fill, self.completion):
            if ring is not None:
                ring.unmap()
        self.rx = self.tx = self.fill = self.completion = None
        self._close_socket()

    def _close_socket(self) -> None:
        if self._socket is not None:
            global _last_close
            self._socket.close()
            self._socket = None
            _last_close = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Only the descriptor: in a cycle the queue's own end may come later, and it looks into the rings.
        if getattr(self, "_socket", None) is not None:
            self._close_socket()

    @property
    def _open(self) -> _socket.socket:
        if self._socket is None:
            raise DeviceError(errno.EBADF, "AF_XDP socket", self.obj, "the queue is closed")
        return self._socket

    def _option(self, option: int, size_bytes: int) -> bytes:
        with self._calling("getsockopt AF_XDP", {}):
            return self._open.getsockopt(_SOL_XDP, option, size_bytes)

    def _map_rings(self, sizes: RingSizes) -> None:
        raw = self._option(_MMAP_OFFSETS, 128)
        if len(raw) != 128:
            raise DeviceError(errno.EPROTO, "AF_XDP ring offsets", self.obj, "needs Linux 5.4 or newer")
        words = struct.unpack("=16Q", raw)
        rx, tx, fill, completion = (RingOffsets(*words[at : at + 4]) for at in range(0, 16, 4))
        fd = self.fileno()
        if sizes.rx:
            self.rx = RingMap(fd, _PGOFF_RX, rx, sizes.rx, 16, self.obj)
        if sizes.tx:
            self.tx = RingMap(fd, _PGOFF_TX, tx, sizes.tx, 16, self.obj)
        if sizes.fill:
            self.fill = RingMap(fd, _PGOFF_FILL, fill, sizes.fill, 8, self.obj)
        if sizes.completion:
            self.completion = RingMap(fd, _PGOFF_COMPLETION, completion, sizes.completion, 8, self.obj)

    @contextmanager
    def _calling(self, call: str, hints: dict[int, str]) -> Iterator[None]:
        """Turn the OSError of the block's one system call into a DeviceError."""
        try:
            yield
        except DeviceError:
            raise
        except OSError as error:
            number = error.errno or errno.EIO  # Python leaves it None for families that it does not know
            raise DeviceError(number, call, self.obj, hints.get(number, os.strerror(number))) from None


def _bind_hint(error: int, flags: BindFlag) -> str:
    if error == errno.EINVAL and flags & BindFlag.SHARED_UMEM:
        return "no such queue, or it is open over this memory already"
    if error == errno.EINVAL:
        return "no such queue, or the rings do not fit a shared UMEM"
    if error == errno.EOPNOTSUPP:
        zero = bool(flags & BindFlag.ZEROCOPY)
        return "the driver has no zero copy; use zerocopy=None or False" if zero else "the driver refuses these flags"
    return {
        errno.EBUSY: "another socket owns the queue",
        errno.ENODEV: "no such interface in this network namespace",
        errno.ENETDOWN: "the interface is down",
        errno.EPERM: "needs CAP_NET_RAW",
        errno.ERANGE: "the MTU needs a program and socket with fragments",
        errno.ENOBUFS: "over RLIMIT_MEMLOCK; needs CAP_IPC_LOCK, a higher limit, or a smaller pool",
    }.get(error, os.strerror(error))

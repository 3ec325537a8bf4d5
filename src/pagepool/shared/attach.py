# SPDX-License-Identifier: MIT
"""`attach`: become a consumer of another process's pool.

The borrower's half of the handshake in `wire`. Nothing that comes is believed: both files are looked at before they are
mapped, and what they say must agree. Invariant: after an exception no descriptor and no mapping is left.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from pagepool.shared._borrower import SharedRingError
from pagepool.shared._lender import size_of_rings
from pagepool.shared.attached_queue import AttachedQueue
from pagepool.shared.mapping import FileMapping
from pagepool.shared.wire import MESSAGE_BYTES, HandshakeError, Hello, Ready, Welcome, check_accepted, receive_welcome

__all__ = ["attach"]

_MAX_ARENA_BYTES: Final = 8 << 40


def attach(
    where: str | os.PathLike[str] | socket.socket | int,
    *,
    writable: bool = False,
    arena_id: bytes | None = None,
    timeout: float = 5.0,
    spin: bool = False,
) -> AttachedQueue:
    """Attach to a pool that another process shares.

    Parameters
    ----------
    where : path, socket or int
        Where a `SharedPool` listens; or this process's end of ``SharedPool.connect()``, as a socket or a descriptor,
        which is taken over.
    writable : bool
        Ask for a mapping that can be written to.
    arena_id : bytes, optional
        16 bytes: the arena that must be there.
    timeout : float
        Seconds for the handshake.
    spin : bool
        Never ask to be woken: for a thread that polls without sleeping (``busy_poll_us=math.inf``), so that the lender
        makes no system call.

    Returns
    -------
    AttachedQueue
        A context manager; poll it as any queue.

    Raises
    ------
    HandshakeError
        Refused, or the other side does not speak the protocol.
    DeviceError
        The memory cannot be mapped as it must be.
    OSError, TimeoutError
        Nobody is there; nobody answers.
    """
    if arena_id is not None and len(arena_id) != 16:
        raise ValueError(f"arena_id has 16 bytes, not {len(arena_id)}")
    sock = _connection(where, timeout)
    try:
        sock.settimeout(timeout)
        _say(sock, Hello(writable, arena_id or bytes(16)).pack())
        welcome, arena_fd, rings_fd = receive_welcome(sock)
        try:
            _check(welcome, arena_fd, writable, arena_id)
            arena = FileMapping(arena_fd, welcome.arena_bytes, writable=welcome.writable)
            rings = FileMapping(rings_fd, welcome.rings_bytes, writable=True)
        finally:
            os.close(arena_fd)
            os.close(rings_fd)
        arena.populate()
        _say(sock, Ready(welcome.arena_id, welcome.arena_inode).pack())
        check_accepted(sock.recv(MESSAGE_BYTES))
        sock.setblocking(False)
        try:
            return AttachedQueue(sock, welcome, arena, rings, spin)
        except SharedRingError as error:
            raise HandshakeError(str(error)) from None
    except BaseException:
        sock.close()
        raise


def _connection(where: str | os.PathLike[str] | socket.socket | int, timeout: float) -> socket.socket:
    if isinstance(where, socket.socket):
        return where
    if isinstance(where, int):
        return socket.socket(fileno=where)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(timeout)
        sock.connect(os.fspath(where))
    except BaseException:
        sock.close()
        raise
    return sock


def _say(sock: socket.socket, message: bytes) -> None:
    try:
        sock.send(message, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        pass  # its reason may wait to be read


def _bytes_of_rings(slots: int) -> int:
    try:
        return size_of_rings(slots)
    except ValueError as error:
        raise HandshakeError(f"the other side offers rings that cannot be: {error}") from None


def _check(welcome: Welcome, arena_fd: int, writable: bool, arena_id: bytes | None) -> None:
    """Raise `HandshakeError` where what was offered is not what was asked for, or cannot be."""
    if arena_id is not None and welcome.arena_id != arena_id:
        raise HandshakeError("the other side offers another arena")
    if welcome.writable and not writable:
        raise HandshakeError("the other side offers memory for writing that was not asked for")
    least_bytes = 4096 << min(welcome.order, 9)
    if welcome.order > 9 or not least_bytes <= welcome.arena_bytes <= _MAX_ARENA_BYTES or welcome.arena_bytes & 0xFFF:
        raise HandshakeError(f"an arena of {welcome.arena_bytes} bytes and order {welcome.order} cannot be")
    if _bytes_of_rings(welcome.slots) != welcome.rings_bytes:
        raise HandshakeError(f"rings of {welcome.slots} entries do not have {welcome.rings_bytes} bytes")
    if os.fstat(arena_fd).st_ino != welcome.arena_inode:
        raise HandshakeError("the descriptor that came is of another file than the arena")

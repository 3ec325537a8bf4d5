# SPDX-License-Identifier: MIT
"""The handshake: four messages over a Unix socket, after which everything goes through shared memory.

    borrower                                 lender
    HELLO   which arena, for writing?   ->
                                        <-   WELCOME   what it is, and two descriptors: arena, rings
    READY   what it mapped              ->
                                        <-   ACCEPTED

At any point the lender may send REFUSED with a reason and hang up. After ACCEPTED single bytes are bells, and the end
of the stream is the end of the other side. Each message has one fixed size on a ``SOCK_SEQPACKET`` socket, so that a
truncated one is seen as such. Words only: nothing is mapped or lent here. Invariant: a message that is not exactly what
it should be is a `HandshakeError`, and descriptors that came with it are closed.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from pagepool.errors import PagePoolError

__all__ = [
    "ACCEPTED",
    "MESSAGE_BYTES",
    "HandshakeError",
    "Hello",
    "Ready",
    "Welcome",
    "check_accepted",
    "receive_welcome",
    "refused",
]

MAGIC: Final = b"PPSHARE\n"
VERSION: Final = 1
MESSAGE_BYTES: Final = 512

_HEAD: Final = struct.Struct("<8s4sI")
_HELLO: Final = struct.Struct("<I16s")
_WELCOME: Final = struct.Struct("<I16sQQQII")
_READY: Final = struct.Struct("<16sQ")
_WRITABLE: Final = 1
_NR_FDS: Final = 2


class HandshakeError(PagePoolError):
    """Two processes did not come to share: the text says who refused, and why."""


def _pack(kind: bytes, body: bytes = b"") -> bytes:
    return _HEAD.pack(MAGIC, kind, VERSION) + body


def _unpack(message: bytes, kind: bytes, body: struct.Struct) -> tuple[Any, ...]:
    if len(message) < _HEAD.size:
        raise HandshakeError(f"a message of {len(message)} bytes where {kind.decode()} should come: truncated")
    magic, got, version = _HEAD.unpack_from(message)
    if magic != MAGIC:
        raise HandshakeError("the other side does not speak this protocol (wrong magic)")
    if version != VERSION:
        raise HandshakeError(f"the other side speaks version {version}, this process version {VERSION}")
    if got == b"REFU":
        raise HandshakeError(f"refused by the other side: {message[_HEAD.size :].decode(errors='replace')}")
    if got != kind or len(message) != _HEAD.size + body.size:
        raise HandshakeError(f"{got!r} of {len(message)} bytes where {kind.decode()} should come")
    return body.unpack_from(message, _HEAD.size)


ACCEPTED: Final = _pack(b"ACPT")


def refused(why: str) -> bytes:
    """Return a REFUSED message."""
    return _pack(b"REFU", why.encode()[: MESSAGE_BYTES - _HEAD.size])


def check_accepted(message: bytes) -> None:
    """Raise `HandshakeError` if `message` is not ACCEPTED."""
    _unpack(message, b"ACPT", struct.Struct(""))


@dataclass(frozen=True)
class Hello:
    """What a borrower asks for; `arena_id` of zeros is "any"."""

    writable: bool
    arena_id: bytes = bytes(16)

    def pack(self) -> bytes:
        return _pack(b"HELO", _HELLO.pack(_WRITABLE if self.writable else 0, self.arena_id))

    @classmethod
    def unpack(cls, message: bytes) -> Hello:
        flags, arena_id = _unpack(message, b"HELO", _HELLO)
        if flags & ~_WRITABLE:
            raise HandshakeError(f"unknown wishes {flags:#x}")
        return cls(bool(flags & _WRITABLE), arena_id)


@dataclass(frozen=True)
class Welcome:
    """What a lender has.

    Attributes
    ----------
    arena_id : bytes
        16 random bytes that name it.
    arena_bytes, rings_bytes : int
        Lengths of the two files.
    arena_inode : int
        Of the arena's file, so that no other one is taken for it.
    slots, order : int
        Entries of each ring; log2 of the pages in one object.
    """

    writable: bool
    arena_id: bytes
    arena_bytes: int
    arena_inode: int
    rings_bytes: int
    slots: int
    order: int

    def pack(self) -> bytes:
        return _pack(
            b"WELC",
            _WELCOME.pack(
                _WRITABLE if self.writable else 0,
                self.arena_id,
                self.arena_bytes,
                self.arena_inode,
                self.rings_bytes,
                self.slots,
                self.order,
            ),
        )

    @classmethod
    def unpack(cls, message: bytes) -> Welcome:
        flags, arena_id, *numbers = _unpack(message, b"WELC", _WELCOME)
        return cls(bool(flags & _WRITABLE), arena_id, *numbers)


@dataclass(frozen=True)
class Ready:
    """What a borrower has mapped."""

    arena_id: bytes
    arena_inode: int

    def pack(self) -> bytes:
        return _pack(b"REDY", _READY.pack(self.arena_id, self.arena_inode))

    @classmethod
    def unpack(cls, message: bytes) -> Ready:
        arena_id, inode = _unpack(message, b"REDY", _READY)
        return cls(arena_id, inode)


def receive_welcome(sock: socket.socket) -> tuple[Welcome, int, int]:
    """Wait for WELCOME and its two descriptors, arena and rings; the caller closes them.

    Raises
    ------
    HandshakeError
        Something else came, or other than two descriptors.
    TimeoutError
        Nothing came in the socket's time.
    """
    flag = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)
    message, ancillary, flags, _ = sock.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(16 * 4), flag)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // 4 * 4])
    try:
        if not message:
            raise HandshakeError("the other side hung up")
        welcome = Welcome.unpack(message)
        if len(fds) != _NR_FDS or flags & socket.MSG_CTRUNC:
            raise HandshakeError(f"{len(fds)} descriptors came with WELCOME, not {_NR_FDS}")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return welcome, fds[0], fds[1]

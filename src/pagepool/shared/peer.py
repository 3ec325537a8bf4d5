# SPDX-License-Identifier: MIT
"""Who is at the other end of a Unix socket, by the kernel's word and not by his own.

A message carries the credentials of the process that sent it (``SCM_CREDENTIALS``) and, from Linux 6.5 on, a pidfd of
it (``SCM_PIDFD``); before that the pidfd is opened by number. Credentials of the socket itself would not do for
everybody: those of a socket pair name whoever made it. They stand in where a connection was accepted and its first
message was sent before the kernel was asked for the sender's (`who_connected`). Invariant: a descriptor that a stranger
sends along is closed, never kept.

Source: unix(7), pidfd_open(2).
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Peer", "ask_for_identity", "receive_identified", "who_connected"]

_SO_PASSPIDFD: Final = 76  # Linux 6.5
_SO_PEERPIDFD: Final = 77  # Linux 6.5
_SCM_CREDENTIALS: Final = 2
_SCM_PIDFD: Final = 4
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred
_ANCILLARY_BYTES: Final = 1024


@dataclass
class Peer:
    """One process.

    Attributes
    ----------
    pid, uid, gid : int
        As this process's namespaces number them.
    name : str
        What it calls itself (``/proc/PID/comm``) when it came: for people, not for decisions.
    pidfd : int
        Owned; -1 once closed.
    """

    pid: int
    uid: int
    gid: int
    name: str
    pidfd: int = field(repr=False)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs. Context: not after `close`."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return not poller.poll(0)

    def kill(self) -> None:
        """Send SIGKILL; nothing if it is gone.

        Raises
        ------
        PermissionError
            It belongs to somebody else.
        """
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Let go of the pidfd. Idempotent."""
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, uid {self.uid})"


def ask_for_identity(sock: socket.socket) -> None:
    """Have the kernel put the sender's credentials beside what is received."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)
    except OSError:
        pass  # before Linux 6.5: by number, below


def receive_identified(sock: socket.socket, size_bytes: int) -> tuple[bytes, Peer | None]:
    """Receive one message without waiting, and who sent it.

    Returns
    -------
    bytes, Peer or None
        The caller closes the peer. None where the kernel could not name the sender (it is gone, or its namespace is
        not seen from here).

    Raises
    ------
    BlockingIOError, OSError
        Nothing there; the socket's error.
    """
    message, ancillary, _, _ = sock.recvmsg(
        size_bytes, _ANCILLARY_BYTES, socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)
    )
    credentials: tuple[int, int, int] | None = None
    pidfd = -1
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == _SCM_CREDENTIALS and len(content) >= _CREDENTIALS.size:
            credentials = _CREDENTIALS.unpack_from(content)
        elif kind == _SCM_PIDFD and len(content) >= 4:
            (pidfd,) = struct.unpack_from("i", content)
        elif kind == socket.SCM_RIGHTS:
            for fd in array.array("i", content[: len(content) // 4 * 4]):
                os.close(fd)
    return message, _peer(credentials, pidfd)


def who_connected(sock: socket.socket) -> Peer | None:
    """Return who made an accepted connection, None where the kernel cannot name him; the caller closes it."""
    credentials = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
    except OSError:
        pidfd = -1
    return _peer(credentials, pidfd)


def _peer(credentials: tuple[int, int, int] | None, pidfd: int) -> Peer | None:
    if credentials is not None and credentials[0] > 0:
        pid, uid, gid = credentials
        try:
            if pidfd < 0:
                pidfd = os.pidfd_open(pid)
            return Peer(pid, uid, gid, _name_of(pid), pidfd)
        except OSError:
            pass
    if pidfd >= 0:
        os.close(pidfd)
    return None


def _name_of(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes()[:-1].decode(errors="replace")
        return "".join(c if c.isprintable() else "?" for c in name)  # it may be any bytes, and ends up on terminals
    except OSError:
        return "?"

# SPDX-License-Identifier: MIT
"""`Visitor`: a connection whose handshake is not finished, and what it is answered.

It never waits: the service thread calls it when there is something to read, and gives it up when its time is over.
Invariant: until ACCEPTED was sent nothing is lent to it; a visitor that is sent away leaves no descriptor and no link.
"""

from __future__ import annotations

import array
import math
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from pagepool.shared._borrower import REVOKED
from pagepool.shared._lender import Link, size_of_rings
from pagepool.shared.consumer import Consumer
from pagepool.shared.mapping import FileMapping, make_rings_file
from pagepool.shared.peer import Peer, ask_for_identity, receive_identified, who_connected
from pagepool.shared.wire import ACCEPTED, MESSAGE_BYTES, HandshakeError, Hello, Ready, Welcome, refused

if TYPE_CHECKING:
    from pagepool.shared.shared_pool import SharedPool

__all__ = ["HANDSHAKE_S", "Visitor"]

HANDSHAKE_S: Final = 5.0


class Visitor:
    """One connection on its way to become a `Consumer`.

    Attributes
    ----------
    deadline : float
        ``time.monotonic()`` at which it is sent away. One that was invited (`SharedPool.connect`) may come when it
        likes, and has its time from its first word on.
    """

    def __init__(self, shared: SharedPool, sock: socket.socket, *, invited: bool) -> None:
        self.shared = shared
        self.sock = sock
        self.invited = invited
        self.deadline = math.inf if invited else time.monotonic() + HANDSHAKE_S
        self.peer: Peer | None = None
        self.link: Link | None = None
        self.writable = False
        sock.setblocking(False)
        ask_for_identity(sock)

    @property
    def fd(self) -> int:
        """Its socket."""
        return self.sock.fileno()

    def listen_to(self) -> Consumer | None:
        """Read what it said and answer.

        Returns
        -------
        Consumer or None
            It is one now; or not yet.

        Raises
        ------
        HandshakeError
            It is sent away; `dismiss` tells it why.
        BlockingIOError
            It said nothing.
        """
        try:
            message, peer = receive_identified(self.sock, MESSAGE_BYTES)
        except BlockingIOError:
            raise
        except OSError as error:
            raise HandshakeError(f"the connection broke: {error.strerror}") from None
        if not message:
            if peer is not None:
                peer.close()
            raise HandshakeError("it hung up")
        if self.link is None:
            self.deadline = time.monotonic() + HANDSHAKE_S
            self.peer = peer
            self._greet(Hello.unpack(message))
            return None
        if peer is not None:
            peer.close()
        return self._accept(Ready.unpack(message))

    def _greet(self, hello: Hello) -> None:
        shared, peer = self.shared, self.peer
        if peer is None and not self.invited:
            peer = self.peer = who_connected(self.sock)
        if peer is None:
            raise HandshakeError("the kernel does not say who you are")
        shared.check_welcome(peer, hello)
        self.writable = hello.writable
        size_bytes = size_of_rings(shared.max_pages)
        fds = array.array("i")
        try:
            fds.append(shared.allocator.dup_fd(writable=hello.writable))
            fds.append(make_rings_file(size_bytes))
            rings = FileMapping(fds[1], size_bytes, writable=True)
            self.link = Link(shared.lender, rings.base_vaddr, shared.max_pages, self.fd, rings.range)
            welcome = Welcome(
                hello.writable,
                shared.arena_id,
                shared.allocator.size_bytes,
                os.fstat(fds[0]).st_ino,
                size_bytes,
                shared.max_pages,
                shared.order,
            )
            self._say(welcome.pack(), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _accept(self, ready: Ready) -> Consumer:
        shared = self.shared
        if ready.arena_id != shared.arena_id or ready.arena_inode != shared.arena_inode:
            raise HandshakeError("you have mapped another arena")
        self._say(ACCEPTED)
        assert self.peer is not None
        assert self.link is not None
        return Consumer(shared, self.sock, self.peer, self.link, writable=self.writable)

    def _say(self, message: bytes, fds: array.array[int] | None = None) -> None:
        try:
            if fds is None:
                self.sock.send(message, socket.MSG_NOSIGNAL)
            else:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                self.sock.sendmsg([message], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise HandshakeError(f"it does not listen: {error.strerror}") from None

    def dismiss(self, why: str) -> None:
        """Send it away: tell it why, if it still listens, and let go of everything."""
        try:
            self.sock.send(refused(why), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass
        if self.link is not None:
            self.link.stop(REVOKED)
            self.link.recall()
        if self.peer is not None:
            self.peer.close()
        self.sock.close()

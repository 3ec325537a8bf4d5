# SPDX-License-Identifier: MIT
"""What wakes a sleeping queue: frames, and news that its interface has gone.

An AF_XDP socket stays silent in poll(2) when its device vanishes. So the descriptor that one sleeps on is an epoll set
of two: the socket, and a netlink socket that hears of links in the queue's namespace. It reports only that something
happened; what, the queue finds out.

Sources: epoll(7), rtnetlink(7).
"""

from __future__ import annotations

import select
import socket

__all__ = ["Wakeup"]

_RTMGRP_LINK = 1


class Wakeup:
    """One descriptor for both; made in the interface's network namespace.

    Parameters
    ----------
    socket_fd : int
        The AF_XDP socket; it stays the caller's.
    """

    def __init__(self, socket_fd: int) -> None:
        self._epoll = select.epoll()
        self._netlink: socket.socket | None = None
        try:
            self._epoll.register(socket_fd, select.EPOLLIN)
            self._netlink = _listen()
            if self._netlink is not None:
                self._epoll.register(self._netlink, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, readable when there are frames or news."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Forget the news. Context: any thread; never blocks."""
        if self._netlink is None:
            return
        try:
            while self._netlink.recv(4096, socket.MSG_DONTWAIT):
                pass
        except OSError:  # EAGAIN: all read; ENOBUFS: too many to keep, which is news as well
            pass

    def close(self) -> None:
        """Close both descriptors. Idempotent."""
        self._epoll.close()
        if self._netlink is not None:
            self._netlink.close()


def _listen() -> socket.socket | None:
    """Return a listener to link news, or None where that is forbidden: a queue can do without."""
    try:
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError:
        return None
    try:
        listener.bind((0, _RTMGRP_LINK))
    except OSError:
        listener.close()
        return None
    return listener

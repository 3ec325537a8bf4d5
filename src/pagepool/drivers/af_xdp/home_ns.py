# SPDX-License-Identifier: MIT
"""The network namespace that a queue was opened in, and a way back into it.

Sockets remember their namespace; system calls that name an interface by its index do not. So a thread that
polls a queue of another namespace goes back for the length of such a call. Nothing is created here.

Sources: setns(2), network_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pagepool.errors import DeviceError

__all__ = ["HomeNs"]

_CLONE_NEWNET = 0x40000000
_SELF = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class HomeNs:
    """The calling thread's network namespace, remembered by a descriptor."""

    def __init__(self) -> None:
        self._fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = _identity(os.fstat(self._fd))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run the block in the namespace; costs one stat(2) where the thread is there already.

        Raises
        ------
        DeviceError
            EPERM: the thread is elsewhere and may not move (CAP_SYS_ADMIN).
        """
        if _identity(os.stat(_SELF)) == self._identity:
            yield
            return
        elsewhere = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fd)
            try:
                yield
            finally:
                _setns(elsewhere)
        finally:
            os.close(elsewhere)

    def close(self) -> None:
        """Forget the namespace. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        hint = "needs CAP_SYS_ADMIN, or a call from the queue's own namespace"
        raise DeviceError(ctypes.get_errno(), "setns", "network namespace", hint)

# SPDX-License-Identifier: MIT
"""Network namespaces for tests: no name, no mount, gone with their last descriptor.

Nothing is written to ``/run/netns``: a namespace lives as long as its file descriptor, so a killed test
leaves nothing. Entering is setns(2) of the calling thread alone; sockets made inside stay inside.

Sources: network_namespaces(7), setns(2), unshare(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from fcntl import ioctl
from types import TracebackType
from typing import Self

from pagepool.errors import DeviceError

__all__ = ["NetNs"]

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_SELF = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class NetNs:
    """A new network namespace with its loopback up.

    ``with ns:`` runs the block inside it (this thread only, nestable); :meth:`close` gives the namespace up,
    and the kernel deletes it, with every device in it, when its last socket is gone too.

    Raises
    ------
    DeviceError
        EPERM without CAP_SYS_ADMIN.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._outside = threading.local()
        failure: list[BaseException] = []

        def unshare() -> None:  # in a thread of its own, which ends in the new namespace
            try:
                if _libc.unshare(_CLONE_NEWNET) != 0:
                    raise DeviceError(ctypes.get_errno(), "unshare", "network namespace", "needs CAP_SYS_ADMIN")
                _set_up("lo")
                self._fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException as error:
                failure.append(error)

        helper = threading.Thread(target=unshare, name="pagepool-netns")
        helper.start()
        helper.join()
        if failure:
            raise failure[0]

    def fileno(self) -> int:
        """Return the descriptor that keeps the namespace, -1 after :meth:`close`."""
        return self._fd

    def __enter__(self) -> Self:
        stack = self._outside.__dict__.setdefault("stack", [])
        fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fd)
        except BaseException:
            os.close(fd)
            raise
        stack.append(fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        fd = self._outside.stack.pop()
        try:
            _setns(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the namespace up. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _setns(fd: int) -> None:
    if fd < 0:
        raise DeviceError(errno.EBADF, "setns", "network namespace", "it was closed")
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise DeviceError(ctypes.get_errno(), "setns", "network namespace", "needs CAP_SYS_ADMIN")


def _set_up(ifname: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = ioctl(control, _SIOCGIFFLAGS, struct.pack("=16sH22x", ifname.encode(), 0))
        (flags,) = struct.unpack_from("=H", request, 16)
        ioctl(control, _SIOCSIFFLAGS, struct.pack("=16sH22x", ifname.encode(), flags | _IFF_UP))

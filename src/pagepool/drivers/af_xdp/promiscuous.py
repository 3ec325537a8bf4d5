# SPDX-License-Identifier: MIT
"""Have an interface receive frames for every Ethernet destination, for as long as somebody wants it.

A bridge needs it of a real NIC, which otherwise drops what is not for its own station before any program sees it. The
wish belongs to a socket: the kernel counts wishes, and takes ours back when the socket closes or its process dies.

Source: packet(7), PACKET_ADD_MEMBERSHIP.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from pagepool.errors import DeviceError

__all__ = ["Promiscuous"]

_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 263, 1, 1


class Promiscuous:
    """One wish.

    Parameters
    ----------
    ifindex : int
        The interface, in the calling thread's network namespace.
    obj : str
        Its name, for errors.

    Raises
    ------
    DeviceError
        EPERM without CAP_NET_RAW, ENODEV without the interface.
    """

    def __init__(self, ifindex: int, obj: str) -> None:
        try:
            # Protocol 0: it takes part, and receives nothing.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            try:
                request = struct.pack("=iHH8x", ifindex, _PACKET_MR_PROMISC, 0)  # struct packet_mreq
                self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            number = error.errno or errno.EIO
            hint = "needs CAP_NET_RAW" if number == errno.EPERM else os.strerror(number)
            raise DeviceError(number, "make promiscuous", obj, hint) from None

    def close(self) -> None:
        """Take the wish back. Idempotent."""
        self._socket.close()

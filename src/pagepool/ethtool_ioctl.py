# SPDX-License-Identifier: MIT
"""One request of ethtool's older door, the ioctl ``SIOCETHTOOL``: for what its netlink family has no message.

Bytes in, bytes out: who asks knows the structure and what a refusal means. A request is never made of another interface
than the one that was named.

Source: ``linux/ethtool.h``; ``struct ifreq`` of netdevice(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from fcntl import ioctl
from typing import Final

__all__ = ["ethtool_ioctl"]

_SIOCETHTOOL: Final = 0x8946
_IFREQ: Final = struct.Struct("=16sQ16x")  # ifr_name, ifr_data
_IFNAMSIZ: Final = 16


def ethtool_ioctl(ifname: str, payload: bytes) -> bytes:
    """Make one request; return the structure as the kernel left it.

    Parameters
    ----------
    ifname : str
        In the calling thread's network namespace.
    payload : bytes
        The structure with its ``cmd``, and room for all that the kernel writes behind it.

    Raises
    ------
    OSError
        The kernel refused, with its errno. ENODEV also for what can be no interface's name: cut to fit, it could
        be another's.

    Notes
    -----
    Context: any thread.
    """
    name = ifname.encode()
    if len(name) >= _IFNAMSIZ or b"\0" in name:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), ifname)
    block = array("B", payload)
    request = _IFREQ.pack(name, block.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        ioctl(control, _SIOCETHTOOL, request)
    return block.tobytes()

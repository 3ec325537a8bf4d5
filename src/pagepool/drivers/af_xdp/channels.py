# SPDX-License-Identifier: MIT
"""How many receive queues an interface has now.

Asked of the driver, not of sysfs: /sys shows the interfaces of the namespace it was mounted in. Changes nothing.

Source: ``struct ethtool_channels`` of ``linux/ethtool.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
from array import array
from fcntl import ioctl

from pagepool.errors import DeviceError

__all__ = ["nr_rx_queues"]

_SIOCETHTOOL, _ETHTOOL_GCHANNELS = 0x8946, 0x3C
_RX_COUNT, _COMBINED_COUNT = 5, 8  # words of the answer


def nr_rx_queues(ifname: str) -> int:
    """Return the number of receive queues, 1 where the driver knows of no more.

    Raises
    ------
    DeviceError
        ENODEV: no such interface in the calling thread's network namespace.
    """
    words = array("I", [_ETHTOOL_GCHANNELS, *[0] * 8])
    request = struct.pack("=16sQ16x", ifname.encode()[:15], words.buffer_info()[0])  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            ioctl(control, _SIOCETHTOOL, request)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return 1
            hint = "no such interface in this network namespace"
            raise DeviceError(error.errno or errno.ENODEV, "count queues of", ifname, hint) from None
    return max(1, words[_RX_COUNT] + words[_COMBINED_COUNT])

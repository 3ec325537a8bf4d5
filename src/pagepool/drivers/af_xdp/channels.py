# SPDX-License-Identifier: MIT
"""How many receive queues an interface has now.

Asked of the driver, not of sysfs: /sys shows the interfaces of the namespace it was mounted in. Changes nothing.

Source: ``struct ethtool_channels`` of ``linux/ethtool.h``.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from pagepool.errors import DeviceError
from pagepool.ethtool_ioctl import ethtool_ioctl

__all__ = ["nr_rx_queues"]

_ETHTOOL_GCHANNELS: Final = 0x3C
_CHANNELS: Final = struct.Struct("=9I")  # cmd; the most of rx, tx, other, combined; how many of each there are


def nr_rx_queues(ifname: str) -> int:
    """Return the number of receive queues, 1 where the driver knows of no more.

    Raises
    ------
    DeviceError
        ENODEV: no such interface in the calling thread's network namespace.
    """
    try:
        answer = ethtool_ioctl(ifname, _CHANNELS.pack(_ETHTOOL_GCHANNELS, *[0] * 8))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 1
        hint = "no such interface in this network namespace"
        raise DeviceError(error.errno or errno.ENODEV, "count queues of", ifname, hint) from None
    *_, rx_count, _, _, combined_count = _CHANNELS.unpack(answer)
    return int(max(1, rx_count + combined_count))

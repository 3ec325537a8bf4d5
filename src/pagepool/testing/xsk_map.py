# SPDX-License-Identifier: MIT
"""A map of sockets to run a steering program against, without an interface: its first queue has one, the others none.

The program looks whether a queue has a socket, and no more; no frame goes anywhere. The socket is not bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pagepool.drivers.af_xdp.bpf import XskMap
from pagepool.drivers.af_xdp.socket import RingSizes, XdpSocket

__all__ = ["xsk_map"]


@contextmanager
def xsk_map(nr_queues: int = 4) -> Iterator[XskMap]:
    """Return a map with a socket at queue 0; both are closed at the end of the block.

    Raises
    ------
    DeviceError
        EPERM: needs CAP_NET_RAW and CAP_BPF.

    Notes
    -----
    The socket has a receive ring because Linux 7.2 takes none without one into a map (ENOBUFS).
    """
    with XskMap(nr_queues) as xsks, XdpSocket() as socket:
        socket.set_rings(RingSizes(rx=64, tx=0, fill=0, completion=0))
        xsks.insert(0, socket.fileno())
        yield xsks

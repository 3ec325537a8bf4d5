# SPDX-License-Identifier: MIT
"""A veth pair between two private network namespaces: the test bench of the AF_XDP driver.

Quiet by construction: IPv6 off, IPv4 numbers with permanent neighbours, so that every frame on the wire is
one that the test sent. The pair is deleted by its interface index on close; should the process die first, the
namespaces go and take it along.

Sources: veth(4), rtnetlink(7). Needs pyroute2 (the ``netns`` extra).
"""

from __future__ import annotations

import errno
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pagepool.errors import DeviceError
from pagepool.ethtool_ioctl import ethtool_ioctl
from pagepool.testing.netns import NetNs

__all__ = ["VethEnd", "VethPair"]

_ETHTOOL_SGRO: Final = 0x2C


@dataclass(frozen=True)
class VethEnd:
    """One end of the pair.

    Attributes
    ----------
    ns : NetNs
        The namespace it lives in.
    ifname, ifindex : str, int
        Valid inside ``ns`` only.
    mac : bytes
        6 bytes.
    ipv4 : str
        Its number, in a /24 with the other end.
    """

    ns: NetNs
    ifname: str
    ifindex: int
    mac: bytes
    ipv4: str

    def set_gro(self, on: bool) -> None:
        """Switch GRO: an end without an XDP program drops redirected frames unless it is on."""
        with self.ns:
            ethtool_ioctl(self.ifname, struct.pack("=II", _ETHTOOL_SGRO, on))  # struct ethtool_value


class VethPair:
    """Two namespaces joined by a veth pair, up and silent.

    Parameters
    ----------
    mtu : int
        Bytes, of both ends.
    nr_queues : int
        Receive and transmit queues of each end. A redirected frame arrives on the queue of the sender's CPU
        (modulo ``nr_queues``).
    gro : bool
        Of the near end.
    near_name : str
        What the near end is called.
    near_ns : NetNs, optional
        Where to put the near end, instead of a namespace of its own; it stays the caller's. So several pairs can have
        their near ends in one.

    Attributes
    ----------
    near, far : VethEnd
        ``near`` is meant for the driver under test, ``far`` for the traffic generator.
    """

    near: VethEnd
    far: VethEnd

    def __init__(
        self,
        mtu: int = 1500,
        nr_queues: int = 1,
        *,
        gro: bool = False,
        near_name: str = "near",
        near_ns: NetNs | None = None,
    ) -> None:
        try:
            from pyroute2 import IPRoute
        except ImportError:
            raise DeviceError(errno.ENOPKG, "import", "pyroute2", "pip install pagepool[netns]") from None
        self._iproute = IPRoute
        self._near_name = near_name
        with ExitStack() as undo:
            spaces = [] if near_ns is None else [near_ns]
            while len(spaces) < 2:
                ns = NetNs()
                undo.callback(ns.close)
                _disable_ipv6(ns)
                spaces.append(ns)
            near_ns, far_ns = spaces
            undo.callback(self._delete, near_ns)
            self._create(near_ns, far_ns, mtu, nr_queues)
            self.near = self._describe(near_ns, near_name, "10.213.0.1")
            self.far = self._describe(far_ns, "far", "10.213.0.2")
            self._configure(self.near, self.far)
            self._configure(self.far, self.near)
            if gro:
                self.near.set_gro(True)
            self._undo = undo.pop_all()

    def _create(self, near_ns: NetNs, far_ns: NetNs, mtu: int, nr_queues: int) -> None:
        queues = {"num_rx_queues": nr_queues, "num_tx_queues": nr_queues}
        peer = {"ifname": "far", "net_ns_fd": far_ns.fileno(), "mtu": mtu, **queues}
        with near_ns, self._iproute() as route:
            route.link("add", ifname=self._near_name, kind="veth", mtu=mtu, peer=peer, **queues)

    def _describe(self, ns: NetNs, ifname: str, ipv4: str) -> VethEnd:
        with ns, self._iproute() as route:
            (link,) = route.get_links(ifname=ifname)
            mac = bytes.fromhex(link.get("address").replace(":", ""))
            return VethEnd(ns, ifname, link["index"], mac, ipv4)

    def _configure(self, end: VethEnd, other: VethEnd) -> None:
        with end.ns, self._iproute() as route:
            route.addr("add", index=end.ifindex, address=end.ipv4, prefixlen=24)
            route.link("set", index=end.ifindex, state="up")
            route.neigh("add", dst=other.ipv4, lladdr=other.mac.hex(":"), ifindex=end.ifindex, state="permanent")

    def delete(self) -> None:
        """Delete the pair now, as if the interface vanished under the driver. Idempotent."""
        self._delete(self.near.ns)

    def _delete(self, ns: NetNs) -> None:
        with ns, self._iproute() as route:
            for link in route.get_links(ifname=self._near_name):
                route.link("del", index=link["index"])

    def close(self) -> None:
        """Delete the pair and give up both namespaces. Idempotent."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _disable_ipv6(ns: NetNs) -> None:
    with ns:
        for which in ("all", "default"):
            try:
                with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w", encoding="ascii") as file:
                    file.write("1")
            except FileNotFoundError:  # a kernel without IPv6
                return

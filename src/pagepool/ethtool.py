# SPDX-License-Identifier: MIT
"""What a network interface can be told through ethtool's netlink family: features, and how hashes spread over queues.

Messages of the kernel's family ``ethtool``, spoken by `pagepool.netlink`: pyroute2 knows the family, but has neither of
these messages. Flow rules have no message there and go by ioctl: `pagepool.drivers.flow_rules`. Nothing is changed but
by the two setters.

Source: Documentation/networking/ethtool-netlink.rst.
"""

from __future__ import annotations

import array
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pagepool.errors import DeviceError
from pagepool.netlink import Attributes, attribute, attributes, pairs, request

__all__ = ["NTUPLE", "Feature", "feature", "rss_indirection", "set_feature", "set_rss_indirection"]

NTUPLE: Final = "rx-ntuple-filter"  # as ``ethtool -k`` calls it

_FAMILY: Final = "ethtool"
_FEATURES_GET, _FEATURES_SET, _RSS_GET, _RSS_SET = 11, 12, 38, 48
_HEADER, _HEADER_NAME = 1, 2
_HW, _WANTED, _ACTIVE = 2, 3, 4
_BITSET_NOMASK, _BITSET_BITS, _BIT, _BIT_NAME, _BIT_VALUE = 1, 3, 1, 2, 3
_RSS_INDIR: Final = 4
_NESTED: Final = 0x8000

_HINTS: Final = {
    errno.ENODEV: "no such interface in this network namespace",
    errno.EPERM: "needs CAP_NET_ADMIN",
    errno.ENOENT: "the kernel was built without CONFIG_ETHTOOL_NETLINK",
}


@dataclass(frozen=True)
class Feature:
    """A feature of an interface: whether it is on, and whether it can be changed."""

    is_on: bool
    can_change: bool


def feature(ifname: str, name: str) -> Feature:
    """Return the state of a feature, by its name in ``ethtool -k``.

    Raises
    ------
    DeviceError
        ENODEV: no such interface.
    """
    answer = _ask(ifname, _FEATURES_GET, "read features")
    return Feature(name in _names(answer.get(_ACTIVE, b"")), name in _names(answer.get(_HW, b"")))


def set_feature(ifname: str, name: str, on: bool) -> None:
    """Switch a feature.

    Raises
    ------
    DeviceError
        EOPNOTSUPP: it stayed as it was, for the driver cannot or another feature forbids it.
    """
    bit = attribute(_BIT_NAME, name.encode() + b"\0") + (attribute(_BIT_VALUE) if on else b"")
    wanted = attribute(_BITSET_BITS | _NESTED, attribute(_BIT | _NESTED, bit))
    _ask(ifname, _FEATURES_SET, f"switch {name}", attribute(_WANTED | _NESTED, wanted))
    if feature(ifname, name).is_on != on:
        hint = f"the driver keeps it {'off' if on else 'on'}; ethtool -k {ifname} shows what it can change"
        raise DeviceError(errno.EOPNOTSUPP, f"switch {name}", ifname, hint)


def rss_indirection(ifname: str) -> list[int]:
    """Return the table that spreads frames without a rule: entry (hash modulo its length) -> receive queue.

    Raises
    ------
    DeviceError
        EOPNOTSUPP: the driver has none; the kernel is older than 6.2.
    """
    hints = {errno.EOPNOTSUPP: "the driver has no table, or the kernel is older than 6.2"}
    raw = _ask(ifname, _RSS_GET, "read the RSS table", hints=hints).get(_RSS_INDIR, b"")
    return array.array("I", raw).tolist()


def set_rss_indirection(ifname: str, queues: Sequence[int]) -> None:
    """Spread frames without a rule over these queues alone, evenly; the others get what rules send them.

    Raises
    ------
    ValueError
        No queue.
    DeviceError
        EOPNOTSUPP: the driver cannot, or the kernel is older than 6.17 (``ethtool -X`` can, by ioctl).

    Notes
    -----
    It stays after the process ends. `rss_indirection` says what to put back.
    """
    if not queues:
        raise ValueError("no queue: frames have to go somewhere")
    length = len(rss_indirection(ifname))
    table = array.array("I", [queues[index % len(queues)] for index in range(length)])
    hints = {errno.EOPNOTSUPP: "the driver cannot, or the kernel is older than 6.17: ethtool -X can, by ioctl"}
    _ask(ifname, _RSS_SET, "set the RSS table", attribute(_RSS_INDIR, table.tobytes()), hints)


def _ask(ifname: str, command: int, call: str, payload: bytes = b"", hints: dict[int, str] | None = None) -> Attributes:
    header = attribute(_HEADER | _NESTED, attribute(_HEADER_NAME, ifname.encode() + b"\0"))
    try:
        return request(_FAMILY, command, header + payload)
    except OSError as error:
        number = error.errno or errno.EIO
        hint = {**_HINTS, **(hints or {})}.get(number, str(error.strerror))
        raise DeviceError(number, call, ifname, hint) from None


def _names(bitset: bytes) -> set[str]:
    """Return the names of the bits that are set: all that are listed, or where there is a mask those with a value."""
    parts = attributes(bitset)
    found = (attributes(bit) for kind, bit in pairs(parts.get(_BITSET_BITS, b"")) if kind == _BIT)
    is_list = _BITSET_NOMASK in parts
    return {bit[_BIT_NAME].rstrip(b"\0").decode() for bit in found if is_list or _BIT_VALUE in bit}

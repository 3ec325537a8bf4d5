# SPDX-License-Identifier: MIT
"""What a filter is made of: values without behaviour, each a question that a frame answers with yes or no.

A frame that has no such thing (no IP, cut short, a later fragment) answers no. `pagepool.drivers.af_xdp.filter.meaning`
is the specification of each; nothing here knows words, bytes or instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "ARP",
    "EXTENSIONS",
    "IP",
    "IP6",
    "MAX_EXTENSIONS",
    "MAX_TAGS",
    "PORT_PROTOCOLS",
    "RARP",
    "VLAN_TYPES",
    "AllOf",
    "AnyOf",
    "End",
    "EtherHost",
    "EtherType",
    "Everything",
    "FilterError",
    "Length",
    "Net",
    "Node",
    "Not",
    "Port",
    "Protocol",
    "Vlan",
]

IP: Final = 0x0800
ARP: Final = 0x0806
RARP: Final = 0x8035
IP6: Final = 0x86DD
VLAN_TYPES: Final = (0x8100, 0x88A8, 0x9100)  # 802.1Q, 802.1ad, and what QinQ was before 802.1ad
MAX_TAGS: Final = 2
PORT_PROTOCOLS: Final = (6, 17, 132)  # TCP, UDP, SCTP: source and destination port in the first 4 bytes
EXTENSIONS: Final = (0, 43, 44, 51, 60, 135)  # hop-by-hop, routing, fragment, AH, destination, mobility
MAX_EXTENSIONS: Final = 6

End = Literal["src", "dst", "either", "both"]


class FilterError(ValueError):
    """The filter expression cannot be used; the text says which word is at fault."""


@dataclass(frozen=True)
class Everything:
    """Every frame."""


@dataclass(frozen=True)
class EtherType:
    """Frames whose EtherType is ``value``: that of the payload behind the VLAN tags, or one of the tags' own."""

    value: int


@dataclass(frozen=True)
class EtherHost:
    """Frames with this MAC number under this mask, 6 bytes each."""

    value: bytes
    mask: bytes = b"\xff" * 6
    end: End = "either"


@dataclass(frozen=True)
class Vlan:
    """Frames with a VLAN tag of number ``vid`` (None: any); ``depth`` 0 is the outer tag, 1 the one behind it."""

    vid: int | None = None
    depth: int = 0


@dataclass(frozen=True)
class Protocol:
    """IP packets of protocol ``value``, over the EtherType ``family``; 0 for IPv4 and IPv6.

    In IPv6 that is the protocol behind the extension headers; the number of an extension header itself matches
    where it is the first.
    """

    value: int
    family: int = 0


@dataclass(frozen=True)
class Port:
    """TCP, UDP and SCTP packets with a port from ``low`` to ``high``; not in later fragments."""

    low: int
    high: int
    end: End = "either"


@dataclass(frozen=True)
class Net:
    """Packets of this network: 4 bytes each in IPv4, ARP and RARP, 16 in IPv6; ``family`` as an EtherType, or 0."""

    value: bytes
    mask: bytes
    end: End = "either"
    family: int = 0


@dataclass(frozen=True)
class Length:
    """Frames of ``low`` to ``high`` bytes, without check sequence."""

    low: int
    high: int


@dataclass(frozen=True)
class Not:
    """What ``inner`` does not match."""

    inner: Node


@dataclass(frozen=True)
class AllOf:
    """What every part matches."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    """What one of the parts matches."""

    parts: tuple[Node, ...]


Node = Everything | EtherType | EtherHost | Vlan | Protocol | Port | Net | Length | Not | AllOf | AnyOf

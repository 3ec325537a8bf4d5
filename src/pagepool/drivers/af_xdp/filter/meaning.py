# SPDX-License-Identifier: MIT
"""What a filter means, as plain Python over the bytes of a frame.

This is the specification: the tests hold the compiled program (`pagepool.drivers.af_xdp.filter.code`) against it in
the kernel, and it against libpcap. It is written to be read, and is no fast path. Invariant: it never reads beyond the
frame; what is not there whole is not there.

Sources: IEEE 802.1Q, RFC 791 (IPv4), 826 (ARP), 8200 and 4302 (IPv6, AH), pcap-filter(7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

from pagepool.drivers.af_xdp.filter.grammar import parse_filter
from pagepool.drivers.af_xdp.filter.tree import (
    ARP,
    EXTENSIONS,
    IP,
    IP6,
    MAX_EXTENSIONS,
    MAX_TAGS,
    PORT_PROTOCOLS,
    RARP,
    VLAN_TYPES,
    AllOf,
    AnyOf,
    End,
    EtherHost,
    EtherType,
    Everything,
    Length,
    Net,
    Node,
    Not,
    Port,
    Protocol,
    Vlan,
)

__all__ = ["matches"]

_FRAGMENT, _AUTHENTICATION = 44, 51
_T = TypeVar("_T")


def matches(expression: str | Node, frame: bytes) -> bool:
    """Return whether the filter takes the frame, as the compiled program would decide.

    Parameters
    ----------
    expression : str or Node
        A filter, or what `parse_filter` made of it.
    frame : bytes
        From the destination's MAC number on, without check sequence.

    Raises
    ------
    FilterError
        The filter does not parse.
    """
    node = parse_filter(expression) if isinstance(expression, str) else expression
    return _holds(node, _read(bytes(frame)))


@dataclass
class _Facts:
    """What a frame says of itself; empty or None where it has no such thing."""

    length: int
    macs: tuple[bytes, bytes] | None = None  # source, destination, as everywhere below
    types: tuple[int, ...] = ()  # EtherTypes from the outside in
    vids: tuple[int, ...] = ()
    family: int = 0  # EtherType of the header that the hosts are from
    hosts: tuple[bytes, bytes] | None = None
    protocols: tuple[int, ...] = ()  # as the IP header says; behind the extension headers
    ports: tuple[int, int] | None = None


def _holds(node: Node, facts: _Facts) -> bool:
    match node:
        case Everything():
            return True
        case EtherType(value):
            return value in facts.types
        case EtherHost(value, mask, end):
            return _at(end, facts.macs, lambda mac: _masked(mac, mask) == value)
        case Vlan(vid, depth):
            return len(facts.vids) > depth and vid in (None, facts.vids[depth])
        case Protocol(value, family):
            where = slice(0, 1) if value in EXTENSIONS else slice(1, 2)
            return family in (0, facts.family) and value in facts.protocols[where]
        case Port(low, high, end):
            return _at(end, facts.ports, lambda port: low <= port <= high)
        case Net(value, mask, end, family):
            families = (family,) if family else (IP6,) if len(value) == 16 else (IP, ARP, RARP)
            return facts.family in families and _at(end, facts.hosts, lambda host: _masked(host, mask) == value)
        case Length(low, high):
            return low <= facts.length <= high
        case Not(inner):
            return not _holds(inner, facts)
        case AllOf(parts):
            return all(_holds(part, facts) for part in parts)
        case AnyOf(parts):
            return any(_holds(part, facts) for part in parts)
        case _:
            assert_never(node)


def _at(end: End, pair: tuple[_T, _T] | None, fits: Callable[[_T], bool]) -> bool:
    if pair is None:
        return False
    src, dst = pair
    match end:
        case "src":
            return fits(src)
        case "dst":
            return fits(dst)
        case "either":
            return fits(src) or fits(dst)
        case "both":
            return fits(src) and fits(dst)


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))


def _read(frame: bytes) -> _Facts:
    facts = _Facts(len(frame))
    if len(frame) < 14:
        return facts
    facts.macs = frame[6:12], frame[:6]
    kind, rest = _be16(frame, 12), frame[14:]
    facts.types = (kind,)
    while kind in VLAN_TYPES and len(facts.vids) < MAX_TAGS and len(rest) >= 4:
        facts.vids += (_be16(rest, 0) & 0xFFF,)
        kind, rest = _be16(rest, 2), rest[4:]
        facts.types += (kind,)
    if kind == IP:
        _read_ipv4(facts, rest)
    elif kind == IP6:
        _read_ipv6(facts, rest)
    elif kind in (ARP, RARP) and len(rest) >= 28:
        facts.family, facts.hosts = kind, (rest[14:18], rest[24:28])
    return facts


def _read_ipv4(facts: _Facts, packet: bytes) -> None:
    if len(packet) < 20:
        return
    protocol = packet[9]
    facts.family, facts.hosts, facts.protocols = IP, (packet[12:16], packet[16:20]), (protocol, protocol)
    header_bytes = 4 * (packet[0] & 0xF)
    if header_bytes >= 20 and _be16(packet, 6) & 0x1FFF == 0:
        _read_ports(facts, packet[header_bytes:])


def _read_ipv6(facts: _Facts, packet: bytes) -> None:
    if len(packet) < 40:
        return
    protocol, rest = packet[6], packet[40:]
    facts.family, facts.hosts, facts.protocols = IP6, (packet[8:24], packet[24:40]), (protocol,)
    for _ in range(MAX_EXTENSIONS):
        if protocol not in EXTENSIONS:
            break
        if len(rest) < 8:
            return
        if protocol == _FRAGMENT:
            size = 8
        elif protocol == _AUTHENTICATION:
            size = 4 * (rest[1] + 2)
        else:
            size = 8 * (rest[1] + 1)
        later = protocol == _FRAGMENT and _be16(rest, 2) & 0xFFF8
        protocol, rest = rest[0], rest[size:]
        if later:
            facts.protocols += (protocol,)
            return
    facts.protocols += (protocol,)
    _read_ports(facts, rest)


def _read_ports(facts: _Facts, segment: bytes) -> None:
    if facts.protocols[1] in PORT_PROTOCOLS and len(segment) >= 4:
        facts.ports = _be16(segment, 0), _be16(segment, 2)


def _be16(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 2], "big")

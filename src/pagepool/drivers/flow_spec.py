# SPDX-License-Identifier: MIT
"""A filter as rules that a NIC can follow: ``struct ethtool_rx_flow_spec``, one for each alternative.

A NIC compares fields with values under masks and knows no "not" and no ranges; what cannot be said so is a
`FilterError` that names it. Nothing here talks to a device.

Source: ``linux/ethtool.h``; the words are those of `pagepool.drivers.af_xdp.filter.grammar`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from pagepool.drivers.af_xdp.filter import FilterError, Node, parse_filter
from pagepool.drivers.af_xdp.filter.tree import (
    IP,
    IP6,
    AllOf,
    AnyOf,
    EtherHost,
    EtherType,
    Net,
    Port,
    Protocol,
    Vlan,
)

__all__ = ["MAX_ALTERNATIVES", "FlowSpec", "flow_specs"]

MAX_ALTERNATIVES: Final = 64
_TCP, _UDP, _SCTP = 6, 17, 132
_FLOW: Final[dict[tuple[int | None, int | None], int]] = {
    (_TCP, IP): 0x01,
    (_UDP, IP): 0x02,
    (_SCTP, IP): 0x03,
    (_TCP, IP6): 0x05,
    (_UDP, IP6): 0x06,
    (_SCTP, IP6): 0x07,
}
_IPV4_USER, _IPV6_USER, _ETHER = 0x0D, 0x0E, 0x12
_EXT, _MAC_EXT = 0x80000000, 0x40000000
_RX_NFC_IP4: Final = 1
_UNION_BYTES: Final = 52
_FULL6: Final = b"\xff" * 6


@dataclass(frozen=True)
class FlowSpec:
    """What one rule matches, without queue and place.

    Attributes
    ----------
    flow_type : int
        ``UDP_V4_FLOW`` and so on, with ``FLOW_EXT`` and ``FLOW_MAC_EXT``.
    values, masks : bytes, 72 each
        ``h_u`` with ``h_ext``, ``m_u`` with ``m_ext``.
    """

    flow_type: int
    values: bytes
    masks: bytes


@dataclass(frozen=True)
class _Fields:
    """One alternative while it is put together: value and mask of each field, None where it does not matter."""

    family: int | None = None
    ether_type: int | None = None
    protocol: int | None = None
    src_mac: tuple[bytes, bytes] | None = None
    dst_mac: tuple[bytes, bytes] | None = None
    src_host: tuple[bytes, bytes] | None = None
    dst_host: tuple[bytes, bytes] | None = None
    src_port: int | None = None
    dst_port: int | None = None
    vid: int | None = None


def flow_specs(filter: str) -> list[FlowSpec]:
    """Return the rules that together match what the filter does.

    Raises
    ------
    FilterError
        It does not parse, says what a NIC's rule cannot, or has more than 64 alternatives.
    """
    found = [_spec(fields) for fields in _alternatives(parse_filter(filter), [_Fields()], filter)]
    return list(dict.fromkeys(found))


def _alternatives(node: Node, so_far: list[_Fields], text: str) -> list[_Fields]:
    """Return every way to fulfil `node` on top of each of `so_far`."""
    match node:
        case AllOf(parts):
            for part in parts:
                so_far = _alternatives(part, so_far, text)
            found = so_far
        case AnyOf(parts):
            found = [fields for part in parts for fields in _alternatives(part, so_far, text)]
        case EtherType(value) if value in (IP, IP6):
            found = _with(so_far, family=value)
        case EtherType(value):
            found = _with(so_far, ether_type=value)
        case Protocol(value, family):
            families = (family,) if family else (IP, IP6)
            found = [one for each in families for one in _with(_with(so_far, family=each), protocol=value)]
        case Vlan(int(vid), 0):
            found = _with(so_far, vid=vid)
        case EtherHost(value, mask, end):
            found = _at_ends(so_far, end, "mac", (value, mask))
        case Net(value, mask, end, family) if family in (0, IP, IP6):
            found = _at_ends(_with(so_far, family=IP6 if len(value) == 16 else IP), end, "host", (value, mask))
        case Port(low, high, end) if low == high:
            with_ports = []
            for fields in so_far:
                protocols = (_TCP, _UDP, _SCTP) if fields.protocol is None else (fields.protocol,)
                families = (fields.family,) if fields.family else (IP, IP6)
                with_ports += [replace(fields, protocol=p, family=f) for p in protocols for f in families]
            found = _at_ends(with_ports, end, "port", low)
        case _:
            what = type(node).__name__
            what = {"Not": "'not'", "Port": "a range of ports", "Everything": "'all'", "Length": "a length"}.get(
                what, what
            )
            raise FilterError(
                f"filter {text!r}: {what} cannot be said in a rule of a NIC, only in the filter of a queue"
            )
    if not found:
        raise FilterError(f"filter {text!r}: its parts exclude each other")
    if len(found) > MAX_ALTERNATIVES:
        raise FilterError(
            f"filter {text!r}: {len(found)} rules, at most {MAX_ALTERNATIVES}; name protocol and direction"
        )
    return found


def _with(so_far: list[_Fields], **fields: object) -> list[_Fields]:
    """Add a field to each; those that want another value there already are left out, as no frame has both."""
    kept = []
    for one in so_far:
        if all(getattr(one, name) in (None, value) for name, value in fields.items()):
            kept.append(replace(one, **fields))  # type: ignore[arg-type]
    return kept


def _at_ends(so_far: list[_Fields], end: str, field: str, value: object) -> list[_Fields]:
    src, dst = {f"src_{field}": value}, {f"dst_{field}": value}
    if end == "both":
        return _with(so_far, **src, **dst)
    return [
        one
        for each in ("src", "dst")
        if end in (each, "either")
        for one in _with(so_far, **(src if each == "src" else dst))
    ]


def _spec(fields: _Fields) -> FlowSpec:
    extension = bytearray(20), bytearray(20)  # padding, destination MAC, VLAN type and tag, two words of the driver
    flow_type, values, masks = _body(fields)
    if fields.dst_mac is not None and flow_type != _ETHER:
        extension[0][2:8], extension[1][2:8] = fields.dst_mac
        flow_type |= _MAC_EXT
    if fields.vid is not None:
        struct.pack_into("!H", extension[0], 10, fields.vid)
        struct.pack_into("!H", extension[1], 10, 0x0FFF)
        flow_type |= _EXT
    values, masks = (part.ljust(_UNION_BYTES, b"\0") for part in (values, masks))
    return FlowSpec(flow_type, values + bytes(extension[0]), masks + bytes(extension[1]))


def _body(fields: _Fields) -> tuple[int, bytes, bytes]:
    """Return flow type, and ``h_u`` and ``m_u`` as far as they are used."""
    is_ip = fields.src_host is not None or fields.dst_host is not None or fields.protocol is not None
    if not is_ip:
        return _ether(fields)
    if fields.ether_type is not None or fields.src_mac is not None:
        raise FilterError("a rule of a NIC has either a source MAC number or EtherType, or IP fields")
    size = 16 if fields.family == IP6 else 4
    nothing = bytes(size), bytes(size)
    src, dst = fields.src_host or nothing, fields.dst_host or nothing
    flow = _FLOW.get((fields.protocol, fields.family))
    if flow is not None:
        ports = [struct.pack("!HH", fields.src_port or 0, fields.dst_port or 0)]
        ports.append(struct.pack("!HH", *(0 if one is None else 0xFFFF for one in (fields.src_port, fields.dst_port))))
        return flow, src[0] + dst[0] + ports[0], src[1] + dst[1] + ports[1]
    if fields.src_port is not None or fields.dst_port is not None:
        raise FilterError("ports are of TCP, UDP and SCTP")
    protocol, mask = fields.protocol or 0, 0 if fields.protocol is None else 0xFF
    if fields.family == IP6:  # four bytes of the next header, traffic class, protocol
        return (
            _IPV6_USER,
            src[0] + dst[0] + struct.pack("=IBB", 0, 0, protocol),
            src[1] + dst[1] + bytes(5) + bytes([mask]),
        )
    version = struct.pack("=IBBB", 0, 0, _RX_NFC_IP4, protocol)  # the same, with a version between
    return _IPV4_USER, src[0] + dst[0] + version, src[1] + dst[1] + bytes(6) + bytes([mask])


def _ether(fields: _Fields) -> tuple[int, bytes, bytes]:
    kind = fields.ether_type or fields.family or 0
    nothing = bytes(6), bytes(6)
    src, dst = fields.src_mac or nothing, fields.dst_mac or nothing
    kinds = struct.pack("!H", kind), b"\xff\xff" if kind else b"\0\0"
    return _ETHER, dst[0] + src[0] + kinds[0], dst[1] + src[1] + kinds[1]

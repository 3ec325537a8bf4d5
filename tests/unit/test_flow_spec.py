# SPDX-License-Identifier: MIT
"""Filters as rules of a NIC: field by field as ``struct ethtool_rx_flow_spec`` has them, and what is refused."""

from __future__ import annotations

import socket

import pytest

from pagepool.drivers.af_xdp import FilterError
from pagepool.drivers.flow_spec import FlowSpec, flow_specs

TCP4, UDP4, SCTP4, TCP6, UDP6, SCTP6, USER4, USER6, ETHER = 1, 2, 3, 5, 6, 7, 0x0D, 0x0E, 0x12
EXT, MAC_EXT = 0x80000000, 0x40000000
V4_PORTS, V6_PORTS, EXTENSION = 8, 32, 52


def only(filter: str) -> FlowSpec:
    (found,) = flow_specs(filter)
    return found


def test_one_port_of_one_protocol() -> None:
    four, six = flow_specs("udp dst port 53")
    assert (four.flow_type, six.flow_type) == (UDP4, UDP6)
    for spec, at in ((four, V4_PORTS), (six, V6_PORTS)):
        assert len(spec.values) == len(spec.masks) == 72
        assert spec.values[at : at + 4] == b"\0\0\0\x35"
        assert spec.masks[at : at + 4] == b"\0\0\xff\xff"
        assert not any(spec.masks[:at] + spec.masks[at + 4 :])


def test_a_flow() -> None:
    spec = only("ip and tcp src port 80 and src host 10.0.0.1 and dst net 10.1.0.0/16")
    assert spec.flow_type == TCP4
    assert spec.values[:12] == socket.inet_aton("10.0.0.1") + socket.inet_aton("10.1.0.0") + b"\0\x50\0\0"
    assert spec.masks[:12] == b"\xff\xff\xff\xff" + b"\xff\xff\0\0" + b"\xff\xff\0\0"


def test_ethernet() -> None:
    spec = only("ether dst 02:00:00:00:00:01 and ether proto 0x88b5")
    assert spec.flow_type == ETHER
    assert spec.values[:14] == b"\2\0\0\0\0\1" + bytes(6) + b"\x88\xb5"
    assert spec.masks[:14] == b"\xff" * 6 + bytes(6) + b"\xff\xff"
    assert only("ip").values[12:14] == b"\x08\x00"
    assert only("arp").flow_type == ETHER


def test_tag_and_station_of_an_ip_flow() -> None:
    spec = only("vlan 100 and ip and udp dst port 53 and ether dst 02:00:00:00:00:01")
    assert spec.flow_type == UDP4 | EXT | MAC_EXT
    assert spec.values[EXTENSION:] == b"\0\0" + b"\2\0\0\0\0\1" + b"\0\0" + b"\0\x64" + bytes(8)
    assert spec.masks[EXTENSION:] == b"\0\0" + b"\xff" * 6 + b"\0\0" + b"\x0f\xff" + bytes(8)


def test_other_protocols() -> None:
    spec = only("ip proto 47 and src host 10.0.0.1")
    assert (spec.flow_type, spec.values[13], spec.values[14], spec.masks[13:15]) == (USER4, 1, 47, b"\0\xff")
    spec = only("icmp6")
    assert (spec.flow_type, spec.values[37], spec.masks[37]) == (USER6, 58, 255)
    spec = only("ip6 dst net 2001:db8::/32")
    assert (spec.flow_type, spec.masks[16:32]) == (USER6, b"\xff" * 4 + bytes(12))


@pytest.mark.parametrize(
    ("filter", "kinds"),
    [
        ("port 53", [TCP4] * 2 + [TCP6] * 2 + [UDP4] * 2 + [UDP6] * 2 + [SCTP4] * 2 + [SCTP6] * 2),
        ("udp port 53", [UDP4, UDP4, UDP6, UDP6]),
        ("udp dst port 53 or 54", [UDP4, UDP6, UDP4, UDP6]),
        ("ip and (tcp dst port 80 or udp dst port 53)", [TCP4, UDP4]),
        ("host 10.0.0.1", [USER4, USER4]),
        ("udp and src and dst port 53 and ip", [UDP4]),
        ("ip or arp", [ETHER, ETHER]),
    ],
)
def test_what_takes_several_rules(filter: str, kinds: list[int]) -> None:
    assert sorted(spec.flow_type for spec in flow_specs(filter)) == sorted(kinds)


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ("not udp", "'not' cannot be said"),
        ("all", "'all' cannot be said"),
        ("udp portrange 1-5", "a range of ports cannot"),
        ("less 100", "a length cannot"),
        ("vlan", "Vlan cannot"),
        ("vlan 1 and vlan 2", "Vlan cannot"),
        ("arp host 10.0.0.1", "Net cannot"),
        ("tcp and udp", "exclude each other"),
        ("ip and ip6", "exclude each other"),
        ("vlan 0 and ip and dst port 0 and udp and dst port 5", "exclude each other"),
        ("icmp and port 53", "ports are of"),
        ("ether src 02:00:00:00:00:01 and udp dst port 5", "either a source MAC"),
        (" or ".join(f"port {number}" for number in range(20)), "at most 64"),
        ("udp prt 5", ">>prt<<"),
    ],
)
def test_what_no_rule_can_say(filter: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        flow_specs(filter)

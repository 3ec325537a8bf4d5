# SPDX-License-Identifier: MIT
"""The words of the filter language: what they mean for a frame, and what is said of those that mean nothing."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pagepool.drivers.af_xdp import FilterError
from pagepool.drivers.af_xdp.filter import matches, parse_filter
from pagepool.drivers.af_xdp.filter.grammar import MAX_NESTING, MAX_PRIMITIVES
from pagepool.testing.frames import ethernet_frame, udp_frame

MACS: dict[str, Any] = {"src": b"\2\0\0\0\0\1", "dst": b"\2\0\0\0\0\2"}
DNS = udp_frame(src_port=1000, dst_port=53, src_ip="10.0.0.1", dst_ip="10.0.0.2", **MACS)


def tagged(*vids: int, frame: bytes = DNS) -> bytes:
    """Put VLAN tags into a frame, the outer first."""
    kinds = [0x88A8] * (len(vids) - 1) + [0x8100]
    tags = b"".join(struct.pack("!HH", kind, vid) for kind, vid in zip(kinds, vids, strict=True))
    return frame[:12] + tags + frame[12:]


def behind_extensions(*headers: bytes, first: int) -> bytes:
    """Return UDP from port 4000 to 53 over IPv6 behind these extension headers."""
    src, dst = b"\x20\x01\x0d\xb8" + bytes(12), b"\xfe\x80" + bytes(14)
    packet = struct.pack("!IHBB", 6 << 28, 100, first, 64) + src + dst + b"".join(headers)
    return ethernet_frame(packet + struct.pack("!HHHH", 4000, 53, 8, 0), ethertype=0x86DD, **MACS)


ARP = ethernet_frame(
    bytes.fromhex("0001080006040001") + b"\2\0\0\0\0\1\x0a\0\0\1" + bytes(6) + b"\x0a\0\0\2", ethertype=0x0806, **MACS
)
HOP_BY_HOP = b"\x11\1" + bytes(14)


@pytest.mark.parametrize(
    ("expression", "frame", "taken"),
    [
        ("vlan 100 and udp port 53", tagged(100), True),
        ("vlan 100 and udp port 53", tagged(7), False),
        ("vlan 100 and udp port 53", DNS, False),
        ("udp port 53", tagged(100), True),
        ("udp port 53 and vlan 100", tagged(100), True),
        ("vlan 100 and vlan 200 and udp port 53", tagged(100, 200), True),
        ("vlan 200 and vlan 100", tagged(100, 200), False),
        ("(vlan 100 or vlan 300) and vlan 200", tagged(300, 200), True),
        ("not vlan 100 and vlan", tagged(7), True),
        ("ether proto 0x88a8", tagged(100, 200), True),
        ("ether proto 0x8100", tagged(100, 200), True),
        ("ether proto ip", tagged(100, 200), True),
        (r"ether proto \ip6", DNS, False),
        ("vlan 4095", tagged(0xEFFE), False),
        ("vlan 4095", tagged(0x1FFF), True),
        ("udp", tagged(1, 2, 3), False),
        ("vlan 1 and vlan 2", tagged(1, 2, 3), True),
        ("host 10.0.0.1", ARP, True),
        ("ip host 10.0.0.1", ARP, False),
        ("arp src host 10.0.0.1 and arp dst host 10.0.0.2", ARP, True),
        ("src 10.0.0.1 and dst 10.0.0.2", DNS, True),
        ("src and dst 10.0.0.1", DNS, False),
        ("src or dst 10.0.0.1", DNS, True),
        ("10.0.0.9 or 10.0.0.1", DNS, True),
        ("src net 10 and dst net 10.0.0.0 mask 255.255.255.0", DNS, True),
        ("net 2001:db8::/32", behind_extensions(first=17), True),
        ("dst net 2001:db8::/32", behind_extensions(first=17), False),
        ("ip6 host fe80::", behind_extensions(first=17), True),
        ("udp port 53", behind_extensions(HOP_BY_HOP, first=0), True),
        ("ip6 proto 0", behind_extensions(HOP_BY_HOP, first=0), True),
        ("udp port 53", behind_extensions(b"\x2c\0" + bytes(6), b"\x11\0\0\1" + bytes(4), first=60), True),
        ("udp port 53", behind_extensions(b"\x11\0\0\x08" + bytes(4), first=44), False),  # a later fragment
        ("udp", behind_extensions(b"\x11\0\0\x08" + bytes(4), first=44), True),
        ("udp port 53", behind_extensions(b"\x11\1" + bytes(10), first=51), True),
        ("udp", behind_extensions(*[b"\0\0" + bytes(6)] * 5, b"\x11\0" + bytes(6), first=0), True),
        ("udp", behind_extensions(*[b"\0\0" + bytes(6)] * 6, b"\x11\0" + bytes(6), first=0), False),
        ("portrange 0-52 or 54-999", DNS, False),
        ("src portrange 1000-1000", DNS, True),
        ("tcp port 53", DNS, False),
        ("greater 64 and less 64", DNS, True),
        ("greater 65 or less 63", DNS, False),
        ("ETHER HOST 2:0:0:0:0:2", DNS, True),
        ("ether src 02-00-00-00-00-02", DNS, False),
        ("proto udp and ip proto 17", DNS, True),
        ("proto esp or icmp or igmp or pim or vrrp or ah", DNS, False),
        ("", b"", True),
        ("not ip", b"", True),
        ("ether dst 02:00:00:00:00:02", DNS[:13], False),
        ("port 53", DNS[:37], False),
        ("host 10.0.0.1", DNS[:33], False),
    ],
)
def test_means(expression: str, frame: bytes, taken: bool) -> None:
    assert matches(expression, frame) is taken


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("udp prot 5", ">>prot<<.*did you mean 'proto'"),
        ("prt 5", ">>prt<<.*did you mean 'port'"),
        ("port 70000", ">>70000<<.*0 to 65535"),
        ("port", "too early.*0 to 65535"),
        ("port domain", ">>domain<<.*number"),
        ("host example.org", ">>example.org<<.*not looked up"),
        ("ip host ::1", ">>::1<<.*IPv4 number after 'ip'"),
        ("ip6 net 10.0.0.0/8", "IPv6 number after 'ip6'"),
        ("net 10.0.0.1/8", "bits outside the mask"),
        ("net 10.0.0.0/33", ">>10.0.0.0/33<<"),
        ("net 10.0.0.0 mask 255.0.255.0", "a network"),
        ("portrange 9-1", ">>9-1<<"),
        ("portrange 5", "1-1024"),
        ("ether src 1:2:3", "MAC number"),
        ("ether 5", "'proto'"),
        ("ether proto 5", "1536 to 65535"),
        ("ip proto 256", "0 to 255"),
        ("vlan 4096", "0 to 4095"),
        ("vlan 1 and vlan 2 and vlan 3", "at most 2 tags"),
        ("(udp", "too early.*'\\)'"),
        ("udp)", ">>\\)<<"),
        ("udp tcp", ">>tcp<<.*'and', 'or'"),
        ("udp and", "too early"),
        ("not", "too early"),
        ("src udp", ">>udp<<.*'port'"),
        ("udp src host 10.0.0.1", ">>host<<"),
        ("ip[8] < 5", "tcpdump has it"),
        ("mpls", "tcpdump has it"),
        ("udp & tcp", ">>&<<"),
        (" or ".join(["udp"] * (MAX_PRIMITIVES + 1)), f"at most {MAX_PRIMITIVES} primitives"),
        ("(" * 5000, f"at most {MAX_NESTING} parentheses"),
        ("not " * 5000 + "udp", f"at most {MAX_NESTING} parentheses"),
        ("\N{SNOWMAN}", "primitive"),
    ],
)
def test_what_does_not_parse_says_where(expression: str, says: str) -> None:
    with pytest.raises(FilterError, match=says) as caught:
        parse_filter(expression)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_longest_and_the_deepest() -> None:
    assert matches(" or ".join(["tcp"] * (MAX_PRIMITIVES - 1) + ["udp"]), DNS)
    assert matches("(" * MAX_NESTING + "udp" + ")" * MAX_NESTING, DNS)

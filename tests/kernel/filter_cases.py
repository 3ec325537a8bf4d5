# SPDX-License-Identifier: MIT
"""Random filters and random frames that have something to do with each other: both draw from the same small pools."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import strategies as st

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:05")
VIDS = (0, 1, 100, 200, 4095)
HOSTS4 = ("10.0.0.1", "10.0.0.2", "10.200.3.4", "192.168.1.1", "224.0.0.5", "255.255.255.255")
HOSTS6 = ("2001:db8::1", "2001:db8:0:1::2", "fe80::1", "ff02::5", "::")
NETS = ("10.0.0.0/8", "10.0.0.0/30", "net 192.168.1", "10", "0.0.0.0/0", "255.255.255.254/31", "192.168.1.1")
NETS6 = ("2001:db8::/32", "2001:db8::/63", "fe80::/10", "ff00::/8", "::/0", "::1/128")
PORTS = (0, 1, 53, 80, 1024, 40000, 65535)
PROTOCOLS = (0, 1, 2, 6, 17, 43, 44, 50, 51, 58, 60, 103, 112, 132, 255)
UPPER = (1, 6, 17, 50, 58, 59, 103, 132)
TYPES = (0x0800, 0x0806, 0x8035, 0x86DD, 0x88B5, 0x0600)
TAG_TYPES = (0x8100, 0x88A8, 0x9100)
LENGTHS = (0, 14, 60, 64, 100, 1514)

_any = st.sampled_from
_end = _any(("", "src ", "dst ", "src or dst ", "dst and src "))
_host4 = st.builds("{}{}host {}".format, _any(("", "ip ", "arp ", "rarp ")), _end, _any(HOSTS4))
_host6 = st.builds("{}{}host {}".format, _any(("", "ip6 ")), _end, _any(HOSTS6))
_net4 = st.builds(
    "{}{}net {}".format, _any(("", "ip ", "arp ")), _end, _any(NETS).map(lambda n: n.removeprefix("net "))
)
_net6 = st.builds("{}{}net {}".format, _any(("", "ip6 ")), _end, _any(NETS6))
_port = st.builds("{}{}port {}".format, _any(("", "udp ", "tcp ", "sctp ")), _end, _any(PORTS))
_range = st.builds(
    lambda kind, end, ports: f"{kind}{end}portrange {min(ports)}-{max(ports)}",
    *(_any(("", "udp ", "tcp ")), _end, st.tuples(_any(PORTS), _any(PORTS))),
)
_words = _any(
    (
        *("ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "ah", "esp", "pim", "vrrp"),
        *("broadcast", "multicast", "ether broadcast", "ether multicast", "ip multicast", "ip6 multicast"),
    )
)
_ether = st.builds("ether {} {}".format, _any(("src", "dst", "host", "src host", "src and dst host")), _any(MACS))
_type = st.builds("ether proto 0x{:04x}".format, _any(TYPES))
_tag_type = st.builds("ether proto 0x{:04x}".format, _any(TAG_TYPES))
_proto = st.builds("{}proto {}".format, _any(("", "ip ", "ip6 ")), _any(PROTOCOLS))
_length = st.builds("{} {}".format, _any(("less", "greater")), _any(LENGTHS))
_vlan = st.one_of(st.just("vlan"), st.builds("vlan {}".format, _any(VIDS)))

untagged_primitives = st.one_of(_words, _host4, _host6, _net4, _net6, _port, _range, _ether, _type, _proto, _length)
primitives = st.one_of(untagged_primitives, _vlan, _tag_type, st.just("all"))


def expressions(primitive: st.SearchStrategy[str], max_leaves: int = 8) -> st.SearchStrategy[str]:
    """Return filters of such primitives."""
    return st.recursive(
        primitive,
        lambda part: st.one_of(
            st.builds("({}) and ({})".format, part, part),
            st.builds("({}) or ({})".format, part, part),
            st.builds("{} and {}".format, primitive, part),
            st.builds("{} or {}".format, primitive, part),
            st.builds("not ({})".format, part),
        ),
        max_leaves=max_leaves,
    )


_mac = _any(MACS).map(lambda text: bytes.fromhex(text.replace(":", "")))
_ports = st.tuples(_any(PORTS), _any(PORTS)).map(lambda pair: struct.pack("!HH", *pair))


@st.composite
def _segment(draw: st.DrawFn) -> bytes:
    return draw(_ports) + bytes(draw(_any((4, 16, 60))))


@st.composite
def _ipv4(draw: st.DrawFn, *, odd: bool) -> bytes:
    nr_options = draw(st.sampled_from((0, 0, 1, 10)))
    nibble = draw(st.integers(0, 15)) if odd and draw(st.booleans()) else 5 + nr_options
    fragment = draw(_any((0, 0, 0x4000, 0x2000, 0x2010, 0x0001)))
    src, dst = (ipaddress.IPv4Address(draw(_any(HOSTS4))).packed for _ in range(2))
    header = struct.pack("!BBHHHBBH", 0x40 | nibble, 0, 100, 7, fragment, 64, draw(_any(PROTOCOLS)), 0) + src + dst
    return header + b"\1" * (4 * nr_options) + draw(_segment())


@st.composite
def _ipv6(draw: st.DrawFn, *, odd: bool) -> bytes:
    src, dst = (ipaddress.IPv6Address(draw(_any(HOSTS6))).packed for _ in range(2))
    upper = draw(_any(UPPER))
    chain = draw(st.lists(_any((0, 43, 44, 51, 60, 135)), max_size=8)) if odd else []
    headers = b""
    for kind, following in zip(chain, [*chain, upper][1:], strict=True):
        if kind == 44:
            headers += struct.pack("!BBHI", following, 0, draw(_any((0, 1, 1, 0x0008))), 7)
        elif kind == 51:
            words = draw(_any((1, 4, 0)))
            headers += bytes([following, words]) + bytes(4 * (words + 2) - 2)
        else:
            words = draw(_any((0, 0, 1, 3)))
            headers += bytes([following, words]) + bytes(8 * (words + 1) - 2)
    first = chain[0] if chain else upper
    return struct.pack("!IHBB", 6 << 28, 100, first, 64) + src + dst + headers + draw(_segment())


@st.composite
def _arp(draw: st.DrawFn) -> bytes:
    src, dst = (ipaddress.IPv4Address(draw(_any(HOSTS4))).packed for _ in range(2))
    return bytes.fromhex("0001080006040001") + draw(_mac) + src + draw(_mac) + dst


@st.composite
def frames(draw: st.DrawFn, *, tags: int | None = None, odd: bool = True) -> bytes:
    """Frames with `tags` VLAN tags (None: 0 to 3); `odd` ones may be cut short, malformed or have extension headers."""
    kind = draw(_any((0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x8035, 0x88B5)))
    if kind == 0x0800:
        payload = draw(_ipv4(odd=odd))
    elif kind == 0x86DD:
        payload = draw(_ipv6(odd=odd))
    elif kind == 0x88B5:
        payload = draw(st.binary(min_size=46, max_size=46))
    else:
        payload = draw(_arp())
    header = draw(_mac) + draw(_mac)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2, 3))) if tags is None else tags):
        header += struct.pack("!HH", draw(_any(TAG_TYPES)), draw(_any(VIDS)) | draw(_any((0, 0xE000))))
    frame = (header + struct.pack("!H", kind) + payload).ljust(60, b"\0")
    if odd and draw(st.booleans()):
        frame = frame[: draw(st.integers(14, len(frame)))]
    if odd and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(12, len(frame) - 1))
        frame = frame[:at] + draw(st.binary(min_size=1, max_size=4)) + frame[at:]
    return frame

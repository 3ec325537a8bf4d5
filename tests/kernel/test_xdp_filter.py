# SPDX-License-Identifier: MIT
"""The filter language against frames, by running the loaded steering program on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.drivers.af_xdp.filter import matches
from pagepool.drivers.af_xdp.xdp_program import steering_code
from pagepool.testing.frames import ethernet_frame, udp_frame
from pagepool.testing.xsk_map import xsk_map

XDP_PASS, XDP_REDIRECT = 2, 4
MACS: dict[str, Any] = {"src": b"\2\0\0\0\0\1", "dst": b"\2\0\0\0\0\2"}
IPS: dict[str, Any] = {"src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"}


def ip6(next_header: int, payload: bytes) -> bytes:
    header = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes([next_header, 64]) + bytes(32)
    return ethernet_frame(header + payload, ethertype=0x86DD, **MACS)


def rewritten(offset: int, part: bytes, frame: bytes) -> bytes:
    return frame[:offset] + part + frame[offset + len(part) :]


FRAMES = {
    "udp": udp_frame(src_port=1000, dst_port=53, **IPS, **MACS),
    "udp with options": udp_frame(src_port=1000, dst_port=53, ip_options=b"\1" * 40, **IPS, **MACS),
    "udp in vlan": udp_frame(src_port=1000, dst_port=53, vlan=7, **IPS, **MACS),
    "udp fragment": rewritten(20, b"\0\x10", udp_frame(src_port=1000, dst_port=53, **IPS, **MACS)),
    "udp cut short": udp_frame(src_port=1000, dst_port=53, **IPS, **MACS)[:36],
    "tcp": udp_frame(protocol=6, src_port=80, dst_port=2000, **IPS, **MACS),
    "icmp": udp_frame(protocol=1, **IPS, **MACS),
    "udp6": ip6(17, b"\0\x35\x10\0\0\x08\0\0"),
    "icmp6": ip6(58, bytes(8)),
    "arp": ethernet_frame(bytes(28), ethertype=0x0806, **MACS),
    "raw": ethernet_frame(b"hello", ethertype=0x88B5, **MACS),
    "bad ihl": ethernet_frame(b"\x41" + bytes(39), ethertype=0x0800, **MACS),
    "headers only": ethernet_frame(b"", ethertype=0x0800, **MACS)[:14],
}
V4_UDP = {"udp", "udp with options", "udp in vlan", "udp fragment", "udp cut short"}
UDP_53 = {"udp", "udp with options", "udp in vlan"}
V4 = V4_UDP | {"tcp", "icmp", "bad ihl", "headers only"}
EVERY = set(FRAMES)

CASES = {
    "all": EVERY,
    "": EVERY,
    "not all": set(),
    "udp": V4_UDP | {"udp6"},
    "tcp": {"tcp"},
    "icmp": {"icmp"},
    "icmp6": {"icmp6"},
    "arp": {"arp"},
    "ip": V4,
    "ip6": {"udp6", "icmp6"},
    "udp port 53": UDP_53 | {"udp6"},
    "udp dst port 53": UDP_53,
    "udp src port 53": {"udp6"},
    "tcp port 80": {"tcp"},
    "tcp port 53": set(),
    "port 80 or port 53": UDP_53 | {"udp6", "tcp"},
    "ether proto 0x88b5": {"raw"},
    "host 10.0.0.1": V4 - {"bad ihl", "headers only"},
    "src host 10.0.0.2": set(),
    "not ip": EVERY - V4,
    "not udp": EVERY - V4_UDP - {"udp6"},
    "ip and not (icmp or udp port 53)": V4 - {"icmp"} - UDP_53,
    "arp || (icmp && host 10.0.0.9)": {"arp"},
    "icmp && host 10.0.0.9 || arp": {"arp"},
    "arp || icmp && host 10.0.0.9": set(),  # as in tcpdump, from left to right
    "vlan": {"udp in vlan"},
    "vlan 7 and udp port 53": {"udp in vlan"},
    "vlan 8": set(),
    "not vlan and udp port 53": {"udp", "udp with options", "udp6"},
    "net 10.0.0.0/8 and not ip": set(),
    "ip6 net ::/0": {"udp6", "icmp6"},
    "udp portrange 50-60": UDP_53 | {"udp6"},
    "port 80 or 53": UDP_53 | {"udp6", "tcp"},
    "ether src 02:00:00:00:00:01": EVERY,
    "ether dst 02:00:00:00:00:01": set(),
    "ip proto 1": {"icmp"},
    "less 59": {"udp cut short", "headers only"},
}


@pytest.fixture(scope="module")
def steering() -> Iterator[tuple[XskMap, PerCpuArrayMap]]:
    with xsk_map() as xsks, PerCpuArrayMap(3) as counters:
        yield xsks, counters


@pytest.mark.needs_root
@pytest.mark.needs_af_xdp
@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("expression", CASES)
def test_matches(expression: str, generic: bool, steering: tuple[XskMap, PerCpuArrayMap]) -> None:
    xsks, counters = steering
    before = counters.sums()
    with XdpProgram(steering_code(xsks, counters, expression, generic=generic)) as program:
        verdicts = {name: program.verdict(frame) for name, frame in FRAMES.items()}
    assert {name for name, verdict in verdicts.items() if verdict == XDP_REDIRECT} == CASES[expression]
    assert {name for name, frame in FRAMES.items() if matches(expression, frame)} == CASES[expression]
    assert set(verdicts.values()) <= {XDP_PASS, XDP_REDIRECT}
    redirected, passed, _ = (after - start for after, start in zip(counters.sums(), before, strict=True))
    assert (redirected, passed) == (len(CASES[expression]), len(FRAMES) - len(CASES[expression]))


@pytest.mark.needs_root
@pytest.mark.needs_af_xdp
def test_a_queue_without_a_socket_passes_all(steering: tuple[XskMap, PerCpuArrayMap]) -> None:
    _, counters = steering
    with XskMap(4) as empty, XdpProgram(steering_code(empty, counters)) as program:
        assert program.verdict(FRAMES["udp"]) == XDP_PASS
        empty.remove(0)

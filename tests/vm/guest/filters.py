# SPDX-License-Identifier: MIT
"""Filters on the kernels of the guests: the verifier takes the longest, and the program decides as the specification.

The tests of the host do this by hypothesis, on one kernel; here chance is Python's, with a seed.
"""

from __future__ import annotations

import random
import struct

from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.drivers.af_xdp.filter import matches
from pagepool.drivers.af_xdp.filter.grammar import MAX_PRIMITIVES
from pagepool.drivers.af_xdp.xdp_program import steering_code
from pagepool.testing.xsk_map import xsk_map

from .support.suite import cases

BOOTS = ("newest", "oldest")
XDP_PASS, XDP_REDIRECT = 2, 4
WORDS = (
    *(
        "ip",
        "ip6",
        "arp",
        "udp",
        "tcp",
        "icmp6",
        "vlan",
        "vlan 7",
        "multicast",
        "less 60",
        "greater 70",
        "ip6 proto 44",
    ),
    *("port 53", "src port 0", "udp dst port 53", "portrange 50-60", "host 10.0.0.1", "ip dst net 10.0.0.0/30"),
    *("net 2001:db8::/32", "src and dst net ::/0", "ether src 02:00:00:00:00:01", "ether proto 0x8100"),
)
LONGEST = {
    "nets": "src and dst net 2001:db8::/63",
    "ranges": "portrange 1-{}",
    "stations": "ether host 02:00:00:00:00:{:02x}",
    "mixed": "(udp port {} or not vlan 7 or tcp dst port {} and not arp)",
}


def expression(chance: random.Random, depth: int = 3) -> str:
    """Return a filter of some words; at most one ``vlan`` to an ``and``, whatever they are."""
    if depth == 0 or chance.random() < 0.3:
        word = chance.choice(WORDS)
        return f"not {word}" if chance.random() < 0.3 else word
    left, right = expression(chance, depth - 1), expression(chance, depth - 1)
    joint = "or" if "vlan" in left + right else chance.choice(("and", "or"))
    return f"({left}) {joint} ({right})"


def frame(chance: random.Random) -> bytes:
    """Return a frame with tags, extension headers and fragments now and then, perhaps cut short."""
    stations = bytes.fromhex("020000000001020000000002") if chance.random() < 0.7 else bytes.fromhex("01005e000005" * 2)
    tags = b"".join(struct.pack("!HH", 0x8100, chance.choice((0, 7))) for _ in range(chance.choice((0, 0, 1, 2, 3))))
    ports = struct.pack("!HH", chance.choice((0, 53, 4000)), chance.choice((53, 55, 80)))
    protocol = chance.choice((6, 17, 17, 1, 132))
    if chance.random() < 0.5:
        fragment = chance.choice((0, 0, 0x4000, 0x2001))
        packet = struct.pack("!BBHHHBBH", 0x40 | chance.choice((5, 5, 6, 4)), 0, 40, 0, fragment, 64, protocol, 0)
        packet = b"\x08\x00" + packet + b"\x0a\0\0\1" + chance.choice((b"\x0a\0\0\2", b"\xe0\0\0\5"))
    else:
        extensions = [chance.choice((0, 43, 44, 51, 60)) for _ in range(chance.choice((0, 0, 1, 2, 7)))]
        kinds = [*extensions, protocol]
        packet = b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 40, kinds[0], 64) + b"\x20\1\x0d\xb8" + bytes(28)
        packet += b"".join(bytes([following]) + bytes(7) for following in kinds[1:])
    whole = (stations + tags + packet + ports + bytes(20)).ljust(60, b"\0")
    return whole[: chance.randrange(14, len(whole) + 1)] if chance.random() < 0.3 else whole


@cases("nets", "ranges", "stations", "mixed")
def test_the_verifier_takes_the_longest(kind: str) -> None:
    part = LONGEST[kind]
    nr_parts = MAX_PRIMITIVES // (4 if "(" in part else 1)
    with XskMap(4) as xsks, PerCpuArrayMap(3) as counters:
        for joint in ("and", "or", "and not", "or not"):
            text = f" {joint} ".join(part.format(index % 250 + 1, index + 1) for index in range(nr_parts))
            XdpProgram(steering_code(xsks, counters, text, generic=True)).close()


def test_the_kernel_decides_as_the_specification() -> None:
    chance = random.Random(4711)
    with xsk_map() as xsks, PerCpuArrayMap(3) as counters:
        hits = 0
        for _ in range(60):
            text = expression(chance)
            with XdpProgram(steering_code(xsks, counters, text)) as program:
                for _ in range(20):
                    one = frame(chance)
                    wanted = matches(text, one)
                    hits += wanted
                    assert program.verdict(one) == (XDP_REDIRECT if wanted else XDP_PASS), (text, one.hex())
        assert 200 < hits < 1000, hits  # both answers, often

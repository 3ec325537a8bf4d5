# SPDX-License-Identifier: MIT
"""The 5-tuple columns: right for whole frames, null for what is cut off, and never a byte past a frame's end."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

import numpy as np
import pytest
from arrow_doubles import Array, payloads, release, taken
from hypothesis import given, settings
from hypothesis import strategies as st
from test_arrow_batch import numbers, valid
from xdp_doubles import RecordingQueue

import pagepool as pp
from pagepool.integrations.arrow import FIVE_TUPLE, to_arrow
from pagepool.integrations.arrow import _headers as headers
from pagepool.testing.frames import udp_frame

NAMES = ("ethertype", "vlan", *FIVE_TUPLE)
MACS = bytes(12)
DTYPES = {"ethertype": "u2", "vlan": "u2", "proto": "u1", "src_port": "u2", "dst_port": "u2"}


def read(frames: list[bytes], filler: int = 0xFF) -> list[dict[str, Any]]:
    """Return the columns as rows. The pages are full of `filler`, so that a read past an end would show."""
    with pp.PagePool() as pool:
        queue = RecordingQueue(pool)
        ids = pool.alloc_bulk(64)
        for page in ids:
            queue.memory.rows[page] = filler
        pool.put_bulk(ids)
        with queue.batch(frames, offsets=16) as batch:
            arrow = to_arrow(batch, columns=NAMES)
        array = taken(arrow.__arrow_c_array__()[1], Array)
        arrow.close()
        found: dict[str, list[Any]] = {}
        for number, name in enumerate(NAMES):
            child = array.children[number].contents
            values = numbers(child, DTYPES[name]) if name in DTYPES else [text.decode() for text in payloads(child)]
            found[name] = [value if there else None for value, there in zip(values, valid(child), strict=True)]
            assert child.null_count == found[name].count(None)
        release(array)
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def ipv4(
    payload: bytes = struct.pack(">HH", 1024, 53),
    proto: int = 17,
    options: bytes = b"",
    fragment: int = 0,
    total: int | None = None,
) -> bytes:
    ihl = 5 + len(options) // 4
    size = 4 * ihl + len(payload) if total is None else total
    fixed = struct.pack(">BBHHHBBH4s4s", 0x40 | ihl, 0, size, 0, fragment, 64, proto, 0, bytes([10, 0, 0, 1]), bytes(4))
    return fixed + options + payload


def ipv6(payload: bytes = struct.pack(">HH", 1024, 53), kind: int = 17, size: int | None = None) -> bytes:
    src, dst = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("::ffff:1.2.3.4")
    fixed = struct.pack(">IHBB", 6 << 28, len(payload) if size is None else size, kind, 64)
    return fixed + src.packed + dst.packed + payload


def ethernet(packet: bytes, kind: int, tags: bytes = b"") -> bytes:
    return MACS + tags + struct.pack(">H", kind) + packet


def test_udp_over_ipv4() -> None:
    frame = udp_frame(
        src=bytes(6), dst=bytes(6), src_ip="192.168.100.200", dst_ip="1.2.3.4", src_port=1234, dst_port=53
    )
    row = {"ethertype": 0x0800, "vlan": None, "src_ip": "192.168.100.200", "dst_ip": "1.2.3.4", "proto": 17}
    assert read([frame, frame]) == [row | {"src_port": 1234, "dst_port": 53}] * 2


def test_ipv6_behind_two_tags() -> None:
    tags = struct.pack(">HHHH", 0x88A8, 0xE064, 0x8100, 0x0007)
    assert read([ethernet(ipv6(), 0x86DD, tags)]) == [
        {
            "ethertype": 0x86DD,
            "vlan": 100,
            "src_ip": "2001:db8::1",
            "dst_ip": "::ffff:1.2.3.4",
            "proto": 17,
            "src_port": 1024,
            "dst_port": 53,
        }
    ]


@pytest.mark.parametrize(
    ("packet", "kind", "proto", "ports"),
    [
        (ipv4(proto=6), 0x0800, 6, (1024, 53)),
        (ipv4(proto=132), 0x0800, 132, (1024, 53)),
        (ipv4(proto=1), 0x0800, 1, (None, None)),
        (ipv4(options=bytes(40)), 0x0800, 17, (1024, 53)),
        (ipv4(fragment=0x2000), 0x0800, 17, (1024, 53)),  # the first of several
        (ipv4(fragment=0x2001), 0x0800, 17, (None, None)),
        (ipv4(total=0), 0x0800, 17, (1024, 53)),  # longer than the field can say
        (ipv4(total=22), 0x0800, 17, (1024, None)),  # the rest is padding
        (ipv4(total=20), 0x0800, 17, (None, None)),
        (ipv6(size=0), 0x86DD, 17, (1024, 53)),
        (ipv6(size=2), 0x86DD, 17, (1024, None)),
        (ipv6(bytes([17, 0]) + bytes(6) + struct.pack(">HH", 7, 8), 0), 0x86DD, 17, (7, 8)),
        (ipv6(bytes([60, 1]) + bytes(14) + bytes([6, 0]) + bytes(6) + struct.pack(">HH", 7, 8), 43), 0x86DD, 6, (7, 8)),
        (ipv6(bytes([17, 1]) + bytes(10) + struct.pack(">HH", 7, 8), 51), 0x86DD, 17, (7, 8)),
        (ipv6(bytes([17, 0, 0, 1]) + bytes(4) + struct.pack(">HH", 7, 8), 44), 0x86DD, 17, (7, 8)),
        (ipv6(bytes([17, 0, 0, 8]) + bytes(4) + struct.pack(">HH", 7, 8), 44), 0x86DD, 17, (None, None)),
        (ipv6(bytes([60, 0]) + bytes(6), 60), 0x86DD, None, (None, None)),  # cut inside the chain
        (ipv6((bytes([60, 0]) + bytes(6)) * 9, 60), 0x86DD, None, (None, None)),  # a chain without an end
    ],
    ids=range(18),
)
def test_protocols(packet: bytes, kind: int, proto: int | None, ports: tuple[Any, Any]) -> None:
    (row,) = read([ethernet(packet, kind)])
    assert (row["proto"], row["src_port"], row["dst_port"]) == (proto, *ports)
    assert row["src_ip"] in ("10.0.0.1", "2001:db8::1")


@pytest.mark.parametrize(
    "packet", [b"\x55" + ipv4()[1:], b"\x44" + ipv4()[1:], b"\x45" * 19, b"\x60" * 39, ipv6()[:39], b""], ids=range(6)
)
@pytest.mark.parametrize("kind", [0x0800, 0x86DD])
def test_what_is_no_ip_packet_has_no_addresses(packet: bytes, kind: int) -> None:
    (row,) = read([ethernet(packet, kind)])
    assert row == dict.fromkeys(NAMES) | {"ethertype": kind}


WHOLE = [
    ethernet(ipv4(options=bytes(8)), 0x0800, struct.pack(">HH", 0x8100, 5)),
    ethernet(ipv6(bytes([17, 0]) + bytes(6) + struct.pack(">HH", 7, 8), 0), 0x86DD),
]


@pytest.mark.parametrize("whole", WHOLE, ids=["ipv4", "ipv6"])
def test_a_truncated_frame_has_nulls_and_shows_nothing_behind_its_end(whole: bytes) -> None:
    (full,) = read([whole])
    cut = [whole[:size] for size in range(len(whole))]
    seen = {filler: read(cut, filler) for filler in (0x00, 0x45, 0xFF)}
    assert seen[0x00] == seen[0x45] == seen[0xFF]
    assert seen[0xFF][0] == dict.fromkeys(NAMES)
    for row in seen[0xFF]:
        assert all(value in (None, full[name]) for name, value in row.items())
    nulls = [list(row.values()).count(None) for row in seen[0xFF]]
    assert nulls == sorted(nulls, reverse=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=120), max_size=8))
def test_noise_reads_the_same_whatever_lies_behind_it(frames: list[bytes]) -> None:
    assert read(frames, 0x00) == read(frames, 0x81)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), min_size=1, max_size=60))
def test_addresses_are_written_as_everybody_writes_them(addresses: list[Any]) -> None:
    frames = []
    for address in addresses:
        packet = ipv4() if address.version == 4 else ipv6()
        at = 12 if address.version == 4 else 8
        packet = packet[:at] + address.packed + packet[at + len(address.packed) :]
        frames.append(ethernet(packet, 0x0800 if address.version == 4 else 0x86DD))
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    said = [socket.inet_ntop(families[address.version], address.packed) for address in addresses]
    assert [row["src_ip"] for row in read(frames)] == said


def test_frames_outside_the_arena_are_refused() -> None:
    flat, out = np.zeros(100, np.uint8), np.zeros(42, np.uint8)
    for start, length in ((-1, 10), (0, -1), (90, 11), (101, 0), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match="are not in 100 bytes"):
            headers.read_headers(flat, np.array([start]), np.array([length]), out)
    with pytest.raises(ValueError, match="do not fit"):
        headers.read_headers(flat, np.zeros(2, np.int64), np.zeros(2, np.int64), out)
    with pytest.raises(ValueError, match="do not fit"):
        headers.address_views(out, False, np.zeros(16, np.uint8), np.zeros(45, np.uint8))

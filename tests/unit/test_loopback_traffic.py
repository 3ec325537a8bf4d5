# SPDX-License-Identifier: MIT
"""What comes over the wire of the software NIC.

Generated flows, hashes as NICs compute them, sources of other kinds.
"""

from __future__ import annotations

import ipaddress
import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.drivers.loopback import NUMBER_AT, FrameBlock, UdpFlows, rss_hash
from pagepool.drivers.loopback.rings import RX_DESCRIPTOR, TX_DESCRIPTOR, DescriptorRing
from pagepool.drivers.loopback.sources import as_source, block_of


def take(flows: UdpFlows, n: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < n and (block := flows.take(n - len(got))) is not None:
        got += [row[:length].tobytes() for row, length in zip(block.rows, block.lengths.tolist(), strict=True)]
    return got


def ones_complement(data: bytes) -> int:
    data += b"\0" * (len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("frame_bytes", [60, 61, 1514])
def test_frames_are_well_formed(frame_bytes: int) -> None:
    protocols = set()
    for number, frame in enumerate(take(UdpFlows(300, frame_bytes, udp_share=0.5), 2100)):
        assert len(frame) == frame_bytes
        assert frame[12:15] == b"\x08\x00\x45"
        assert ones_complement(frame[14:34]) == 0xFFFF
        assert int.from_bytes(frame[16:18], "big") == frame_bytes - 14
        pseudo = frame[26:34] + struct.pack(">HH", frame[23], frame_bytes - 34)
        assert ones_complement(pseudo + frame[34:]) == 0xFFFF
        assert int.from_bytes(frame[NUMBER_AT : NUMBER_AT + 4], "big") == number
        protocols.add(frame[23])
        if frame[23] == 17:
            assert int.from_bytes(frame[38:40], "big") == frame_bytes - 34
        else:
            assert frame[46] >> 4 == 5
    assert protocols == {6, 17}


def test_the_same_arguments_make_the_same_frames() -> None:
    make = [UdpFlows(8, seed=seed, udp_share=0.7, count=3000) for seed in (1, 1, 2)]
    one, again, other = (take(flows, 4000) for flows in make)
    assert len(one) == 3000
    assert one == again
    assert one != other
    assert make[0].take(1) is None
    assert {int.from_bytes(f[28:30], "big") for f in one[:8]} == set(range(8))


@pytest.mark.parametrize(
    "bad",
    [{"flows": 0}, {"flows": 65537}, {"frame_bytes": 59}, {"frame_bytes": 9019}, {"udp_share": 1.1}, {"count": -1}],
)
def test_bad_arguments_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        UdpFlows(**bad)  # type: ignore[arg-type]


def frame_of(source: str, destination: str, sport: int, dport: int, protocol: int = 6, fragment: int = 0) -> bytes:
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if src.version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, fragment, 64, protocol, 0)
        return bytes(12) + b"\x08\x00" + head + src.packed + dst.packed + struct.pack(">HH", sport, dport) + bytes(16)
    head = struct.pack(">IHBB", 6 << 28, 20, protocol, 64)
    return bytes(12) + b"\x86\xdd" + head + src.packed + dst.packed + struct.pack(">HH", sport, dport) + bytes(16)


def hash_of(frame: bytes) -> int:
    return int(rss_hash(*block_of([frame]))[0])


@pytest.mark.parametrize(
    ("destination", "source", "with_ports", "without"),
    [
        (("161.142.100.80", 1766), ("66.9.149.187", 2794), 0x51CCC178, 0x323E8FC2),
        (("65.69.140.83", 4739), ("199.92.111.2", 14230), 0xC626B0EA, 0xD718262A),
        (("12.22.207.184", 38024), ("24.19.198.95", 12898), 0x5C2B394A, 0xD2D0A5DE),
        (("209.142.163.6", 2217), ("38.27.205.30", 48228), 0xAFC7327F, 0x82989176),
        (("202.188.127.2", 1303), ("153.39.163.191", 44251), 0x10E828A2, 0x5D1809C5),
        (("3ffe:2501:200:3::1", 1766), ("3ffe:2501:200:1fff::7", 2794), 0x40207D3D, 0x2CC18CD5),
        (("ff02::1", 4739), ("3ffe:501:8::260:97ff:fe40:efab", 14230), 0xDDE51BBF, 0x0F0C461C),
        (("fe80::200:f8ff:fe21:67cf", 38024), ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251), 0x02D1FEEF, 0x4B61E985),
    ],
)
def test_the_published_vectors(
    destination: tuple[str, int], source: tuple[str, int], with_ports: int, without: int
) -> None:
    for protocol in (6, 17):
        assert hash_of(frame_of(source[0], destination[0], source[1], destination[1], protocol)) == with_ports
    assert hash_of(frame_of(source[0], destination[0], source[1], destination[1], 1)) == without
    if ":" not in source[0]:
        assert hash_of(frame_of(source[0], destination[0], source[1], destination[1], 6, fragment=0x2000)) == without
        assert hash_of(frame_of(source[0], destination[0], source[1], destination[1], 6, fragment=7)) == without


def test_what_is_not_ip_has_no_hash() -> None:
    frames = [b"", bytes(14), bytes(60), bytes(12) + b"\x08\x06" + bytes(46), bytes(12) + b"\x86\xdd" + bytes(20)]
    assert [hash_of(frame) for frame in frames] == [0] * 5
    mixed = [*frames, frame_of("10.0.0.1", "10.0.0.2", 1, 2), frame_of("::1", "::2", 1, 2)]
    assert (rss_hash(*block_of(mixed)) != 0).tolist() == [False] * 5 + [True] * 2


def test_sources_of_other_kinds() -> None:
    endless = as_source(itertools.repeat(b"x" * 60))
    block = endless.take(5)
    assert block is not None
    assert block.rows.shape == (5, 60)
    few = as_source([b"abc", bytearray(b"de"), memoryview(b"f")])
    block = few.take(64)
    assert block is not None
    assert block.lengths.tolist() == [3, 2, 1]
    assert few.take(1) is None

    class Mine:
        def take(self, n: int) -> FrameBlock | None:
            return None

    mine = Mine()
    assert as_source(mine) is mine


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([8, 16]), st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), max_size=20))
def test_ring_indices_equal_a_plain_queue(size: int, steps: list[tuple[int, int]]) -> None:
    ring = DescriptorRing(size, RX_DESCRIPTOR)
    assert (RX_DESCRIPTOR.itemsize, TX_DESCRIPTOR.itemsize) == (16, 16)
    clean = 0
    model: list[int] = []
    for post, finish in steps:
        n = min(post, size - (ring.tail - clean))
        for span in ring.spans(ring.tail, n):
            ring.status[span] = 0
        model += [0] * n
        ring.tail += n
        k = min(finish, ring.nr_posted)
        for span in ring.spans(ring.head, k):
            ring.status[span] = 3
        ring.head += k
        done = ring.head - clean
        assert len(model) == ring.tail - clean
        for limit in (0, done // 2, done, ring.tail - clean):
            assert ring.nr_done(clean, limit) == min(done, limit)
        clean += done // 2
        del model[: done // 2]
    with pytest.raises(ValueError, match="power of two"):
        DescriptorRing(12, RX_DESCRIPTOR)
    assert np.shares_memory(ring.status, ring.descriptors)

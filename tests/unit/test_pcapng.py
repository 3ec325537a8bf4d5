# SPDX-License-Identifier: MIT
"""Capture files: what is written is read back, both formats, both byte orders.

Damage gives one clear error.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.drivers.capture import LINKTYPE_ETHERNET, CaptureError, PcapngWriter, read_capture

STAMP = 1_700_000_000_123_456_789


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) & 3)
    total = len(body) + 12
    return struct.pack(order + "II", kind, total) + body + struct.pack(order + "I", total)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def interface(order: str, options: bytes = b"", linktype: int = 1, snaplen: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def enhanced(order: str, data: bytes, ticks: int = 0, number: int = 0) -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) + 3)
    return block(order, 6, head + data)


def pcap(order: str, magic: int, frames: list[bytes], fraction: int = 5) -> bytes:
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack(order + "IIII", 7, fraction, len(f), len(f) + 1) + f for f in frames)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(st.binary(max_size=200), max_size=12),
    stamp=st.integers(0, 2**63),
    outbound=st.none() | st.booleans(),
)
def test_what_is_written_is_read(frames: list[bytes], stamp: int, outbound: bool | None) -> None:
    file = io.BytesIO()
    with PcapngWriter(file) as writer:
        assert writer.write_frames(frames, stamp, outbound=outbound) == len(frames)
        assert writer.size_bytes == len(file.getvalue())
    read = list(read_capture(io.BytesIO(file.getvalue())))
    assert [(f.data, f.timestamp_ns, f.length, f.linktype) for f in read] == [
        (f, stamp, len(f), LINKTYPE_ETHERNET) for f in frames
    ]


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    with PcapngWriter(path, snaplen=10) as writer:
        assert writer.add_interface("eth0") == 0
        assert writer.add_interface("eth1", linktype=101) == 1
        writer.write(b"x" * 64, STAMP, interface=1)
        writer.write(memoryview(bytearray(b"abc")))
        with pytest.raises(ValueError, match="interface 2"):
            writer.write(b"", interface=2)
        writer.flush()
    first, second = read_capture(path)
    assert (first.data, first.length, first.timestamp_ns) == (b"x" * 10, 64, STAMP)
    assert (first.interface, first.linktype) == (1, 101)
    assert second.data == b"abc"
    assert abs(second.timestamp_ns - STAMP) < 10 * 365 * 86400 * 10**9
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"")
    with pytest.raises(ValueError, match="snaplen"):
        PcapngWriter(path, snaplen=0)
    with pytest.raises(FileNotFoundError):
        PcapngWriter(tmp_path / "no" / "folder")


def test_a_time_for_each_frame() -> None:
    file = io.BytesIO()
    with PcapngWriter(file) as writer:
        assert writer.write_frames([b"one", b"two"], (STAMP, STAMP + 7)) == 2
        written = file.getvalue()
        for stamps in ([STAMP], [STAMP] * 3):
            with pytest.raises(ValueError, match="zip"):
                writer.write_frames([b"one", b"two"], stamps)
        assert file.getvalue() == written
    assert [frame.timestamp_ns for frame in read_capture(io.BytesIO(written))] == [STAMP, STAMP + 7]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "stamp"), [(0xA1B2C3D4, 7_000_005_000), (0xA1B23C4D, 7_000_000_005)])
def test_pcap(order: str, magic: int, stamp: int) -> None:
    read = list(read_capture(io.BytesIO(pcap(order, magic, [b"one", b"", b"three"]))))
    assert [(f.data, f.timestamp_ns, f.length) for f in read] == [
        (b"one", stamp, 4),
        (b"", stamp, 1),
        (b"three", stamp, 6),
    ]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "stamp"),
    [
        (lambda o: b"", 3_000_001_000),
        (lambda o: option(o, 9, b"\x03"), 3_000_001_000_000),
        (
            lambda o: option(o, 2, b"eth0") + option(o, 9, b"\x89") + option(o, 0, b""),
            3_000_001 * 10**9 // 512,
        ),
        (lambda o: option(o, 9, b"\x09") + option(o, 14, struct.pack(o + "q", -1)), 3_000_001 - 10**9),
    ],
)
def test_pcapng_clocks(order: str, options: object, stamp: int) -> None:
    data = section(order) + interface(order, options(order)) + enhanced(order, b"frame", 3_000_001)  # type: ignore[operator]
    (frame,) = read_capture(io.BytesIO(data))
    assert (frame.data, frame.timestamp_ns, frame.length) == (b"frame", stamp, 8)


def test_sections_of_both_orders_and_other_blocks() -> None:
    simple = block("<", 3, struct.pack("<I", 9) + b"12345")
    obsolete = block(">", 2, struct.pack(">HHIIII", 0, 0, 0, 5, 2, 2) + b"ob")
    data = section("<") + interface("<", snaplen=5) + simple + block("<", 0xBAD, b"skipped ")
    data += section(">") + interface(">", linktype=113) + obsolete
    assert [(f.data, f.length, f.timestamp_ns, f.linktype) for f in read_capture(io.BytesIO(data))] == [
        (b"12345", 9, 0, 1),
        (b"ob", 2, 5000, 113),
    ]


@pytest.mark.parametrize(
    "data",
    [section("<") + interface("<") + enhanced("<", b"frame") * 2, pcap("<", 0xA1B2C3D4, [b"frame"] * 2)],
)
def test_every_truncation_is_one_error(data: bytes) -> None:
    whole = 0
    for cut in range(len(data)):
        frames = []
        error: CaptureError | None = None
        try:
            for frame in read_capture(io.BytesIO(data[:cut])):
                frames.append(frame.data)
        except CaptureError as caught:
            error = caught
        assert frames in ([], [b"frame"])
        whole += error is None  # cut between two blocks: a shorter but whole file
        assert error is None or ", byte " in str(error)
    assert whole <= 3


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends before"),
        (b"GIF89a", "neither"),
        (section("<")[:8] + b"abcd" + bytes(16), "magic"),
        (block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)), "version 2"),
        (block("<", 0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "too short"),
        (section("<") + struct.pack("<II", 6, 0xFFFFFFFC), "4294967292 bytes long"),
        (section("<") + struct.pack("<II", 6, 13), "13 bytes long"),
        (section("<")[:-4] + struct.pack("<I", 44), "ends with the length 44"),
        (section("<") + enhanced("<", b""), "interface 0, of which there are 0"),
        (section("<") + block("<", 3, bytes(4)), "before any interface"),
        (section("<") + interface("<") + block("<", 3, struct.pack("<I", 50)), "50 bytes of frame"),
        (
            section("<") + interface("<") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 99, 99)),
            "99 bytes of frame",
        ),
        (section("<") + interface("<") + block("<", 6, b"1234"), "damaged"),
        (section("<") + interface("<", option("<", 9, b"\x7f")), "clock"),
        (section("<") + interface("<", struct.pack("<HH", 2, 400)), "option 2"),
        (pcap("<", 0xA1B2C3D4, [])[:20] + b"\1\2\3", "truncated"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 9, 4, 0, 0, 0, 1), "version 9"),
        (pcap("<", 0xA1B2C3D4, []) + struct.pack("<IIII", 0, 0, 1 << 30, 0), "1073741824 bytes long"),
    ],
)
def test_damage_is_named(data: bytes, text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        list(read_capture(io.BytesIO(data)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_noise_never_does_worse(data: st.DataObject) -> None:
    good = bytearray(section("<") + interface("<", option("<", 9, b"\x09")) + enhanced("<", b"frame", 5))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        list(read_capture(io.BytesIO(bytes(good))))
    except CaptureError:
        pass

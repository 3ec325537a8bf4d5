# SPDX-License-Identifier: MIT
"""Read a capture file of either format, told apart by its first four bytes; and the older one, pcap, itself.

Invariant: a file that is cut off or damaged gives every frame before the damage and then one `CaptureError`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pagepool.drivers.capture.captured import MAX_FRAME_BYTES, CapturedFrame, Cursor
from pagepool.drivers.capture.pcapng_reader import SECTION_HEADER, read_pcapng

__all__ = ["read_capture"]

# First four bytes of a pcap file: byte order and nanoseconds per tick of the clock's fraction.
_PCAP_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}


def read_capture(source: str | os.PathLike[str] | BinaryIO) -> Iterator[CapturedFrame]:
    """Yield the frames of a pcap or pcapng file.

    Parameters
    ----------
    source : path or binary file
        A path is opened at the first frame and closed after the last; a file is read from where it stands.

    Raises
    ------
    CaptureError
        The file is no capture, truncated or damaged. Frames before the damage have been yielded.
    OSError
        It cannot be opened or read.
    """
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield from _read(Cursor(file, os.fspath(source)))
    else:
        yield from _read(Cursor(source, str(getattr(source, "name", "capture"))))


def _read(cursor: Cursor) -> Iterator[CapturedFrame]:
    magic = cursor.read(4, "file header")
    if magic == SECTION_HEADER.to_bytes(4, "big"):
        yield from read_pcapng(cursor)
    elif magic in _PCAP_MAGICS:
        yield from _read_pcap(cursor, *_PCAP_MAGICS[magic])
    else:
        raise cursor.error(f"this is neither a pcapng nor a pcap file (it begins with {magic.hex()})")


def _read_pcap(cursor: Cursor, order: str, tick_ns: int) -> Iterator[CapturedFrame]:
    head = cursor.read(20, "file header")
    major, _, _, _, _, linktype = struct.unpack(order + "HHiIII", head)
    if major != 2:
        raise cursor.error(f"version {major} of pcap is not known")
    record = struct.Struct(order + "IIII")
    while raw := cursor.read_or_end(record.size, "frame header"):
        seconds, fraction, captured, length = record.unpack(raw)
        if captured > MAX_FRAME_BYTES:
            raise cursor.error(f"a frame cannot be {captured} bytes long")
        data = cursor.read(captured, "frame") if captured else b""
        # The upper bits of the link type say how long a frame check sequence is.
        stamp = seconds * 1_000_000_000 + fraction * tick_ns
        yield CapturedFrame(data, stamp, max(length, captured), 0, linktype & 0xFFFF)

# SPDX-License-Identifier: MIT
"""What a capture file holds, the one error for a file that cannot be read, and the cursor that raises it.

No format knowledge. Invariant: a `Cursor` never returns fewer bytes than asked for: it raises, and says where
the file ended.
"""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

__all__ = ["LINKTYPE_ETHERNET", "MAX_FRAME_BYTES", "CaptureError", "CapturedFrame", "Cursor"]

LINKTYPE_ETHERNET = 1
#  Longer frames and blocks are taken for damage, not allocated. The formats' own bound is 256 KiB for nearly
# all link types.
MAX_FRAME_BYTES = 16 << 20


class CaptureError(ValueError):
    """A capture file is truncated, damaged, or no capture file; the text has the file and the byte."""


class CapturedFrame(NamedTuple):
    """One frame of a capture file.

    Attributes
    ----------
    data : bytes
        What was captured, up to the file's snapshot length.
    timestamp_ns : int
        Nanoseconds since 1970; 0 if the file has none.
    length : int
        Bytes the frame had on the wire, at least ``len(data)``.
    interface : int
        Interface of its section, 0 in a pcap file.
    linktype : int
        ``LINKTYPE_*``; 1 is Ethernet.
    """

    data: bytes
    timestamp_ns: int
    length: int
    interface: int = 0
    linktype: int = LINKTYPE_ETHERNET


class Cursor:
    """A binary file, read from front to back, that knows where it is.

    Parameters
    ----------
    file : binary file
        Read only; never sought, so a pipe will do.
    name : str
        For error texts.
    """

    __slots__ = ("at", "file", "name")

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.at = 0

    def read(self, size_bytes: int, what: str) -> bytes:
        """Return exactly `size_bytes` bytes."""
        data = self.read_or_end(size_bytes, what)
        if len(data) < size_bytes:
            raise self.error(f"the file ends before its {what}")
        return data

    def read_or_end(self, size_bytes: int, what: str) -> bytes:
        """Return `size_bytes` bytes, or none at the end of the file; part of them is an error."""
        data = b""
        while len(data) < size_bytes:
            more = self.file.read(size_bytes - len(data))
            if not more:
                break
            data += more
        if data and len(data) < size_bytes:
            raise self.error(f"the file is truncated: {len(data)} of {size_bytes} bytes of a {what}")
        self.at += len(data)
        return data

    def error(self, why: str) -> CaptureError:
        """Return the error that says where and why."""
        return CaptureError(f"{self.name}, byte {self.at}: {why}")

# SPDX-License-Identifier: MIT
"""Write pcapng: a section header, interface descriptions, and one enhanced packet block per frame.

Nanosecond timestamps, native byte order, options only where a reader would miss them. Invariant: what is in
the file after any call that returned is a whole number of blocks. Format: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from pagepool.drivers.capture.captured import LINKTYPE_ETHERNET

__all__ = ["PcapngWriter"]

_SECTION_HEADER, _INTERFACE, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_OPT_END, _OPT_IF_NAME, _OPT_IF_TSRESOL, _OPT_EPB_FLAGS, _OPT_USERAPPL = 0, 2, 9, 2, 4
_INBOUND, _OUTBOUND = 1, 2
_packet_head = struct.Struct("=IIIIIII")
_packet_tail = struct.Struct("=HHIHHI")
_padding = (b"", b"\0\0\0", b"\0\0", b"\0")


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + _padding[len(value) & 3]


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        body += options + _option(_OPT_END, b"")
    total = len(body) + 12
    return struct.pack("=II", kind, total) + body + struct.pack("=I", total)


def _open(target: str | os.PathLike[str] | BinaryIO) -> BinaryIO:
    return Path(target).open("wb") if isinstance(target, (str, os.PathLike)) else target


class PcapngWriter:
    """Write frames to a pcapng file.

    Parameters
    ----------
    target : path or binary file
        A path is created or overwritten, and closed by `close`; a file is written from where it stands and
        stays open.
    snaplen : int
        Bytes kept of a frame at most.

    Attributes
    ----------
    frames, size_bytes : int
        Written so far.

    Raises
    ------
    OSError
        As the file does: no such folder, no room on the device.

    Notes
    -----
    About a microsecond per frame, buffered; `flush` before another process reads it.

    Context: one thread at a time.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO, *, snaplen: int = 262144) -> None:
        if snaplen < 1:
            raise ValueError(f"snaplen {snaplen} must be at least 1 byte")
        self._owns = isinstance(target, (str, os.PathLike))
        self._file: BinaryIO | None = _open(target)
        self.snaplen = snaplen
        self.frames = 0
        self.size_bytes = 0
        self._interfaces = 0
        body = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        self._write(_block(_SECTION_HEADER, body, _option(_OPT_USERAPPL, b"pagepool")))

    def add_interface(self, name: str = "", linktype: int = LINKTYPE_ETHERNET) -> int:
        """Describe an interface; return its number, from 0.

        The first frame adds a nameless one if none was.
        """
        options = _option(_OPT_IF_NAME, name.encode()) if name else b""
        options += _option(_OPT_IF_TSRESOL, b"\x09")
        self._write(_block(_INTERFACE, struct.pack("=HHI", linktype, 0, self.snaplen), options))
        self._interfaces += 1
        return self._interfaces - 1

    def write(
        self,
        frame: bytes | bytearray | memoryview,
        timestamp_ns: int | None = None,
        *,
        interface: int = 0,
        outbound: bool | None = None,
    ) -> None:
        """Write one frame; see `write_frames`."""
        self.write_frames((frame,), timestamp_ns, interface=interface, outbound=outbound)

    def write_frames(
        self,
        frames: Iterable[bytes | bytearray | memoryview],
        timestamp_ns: int | Iterable[int] | None = None,
        *,
        interface: int = 0,
        outbound: bool | None = None,
    ) -> int:
        """Write frames that came together.

        Parameters
        ----------
        frames : iterable of bytes-like
            Whole frames, one-dimensional; what exceeds the snapshot length is cut and its length kept.
        timestamp_ns : int or iterable of int, optional
            Nanoseconds since 1970, of all or of each; now by default.
        interface : int
            From `add_interface`.
        outbound : bool, optional
            Sent (True) or received (False); unknown by default.

        Returns
        -------
        int
            How many were written.

        Raises
        ------
        ValueError
            No such interface; more or fewer timestamps than frames. Nothing is written then.
        """
        if interface >= self._interfaces:
            if interface or self._interfaces:
                raise ValueError(f"interface {interface} of {self._interfaces} was not added")
            self.add_interface()
        if timestamp_ns is None:
            timestamp_ns = time.time_ns()
        alike = isinstance(timestamp_ns, int)
        stamps: Iterable[int] = repeat(timestamp_ns) if alike else timestamp_ns  # type: ignore[arg-type,assignment]
        flags = 0 if outbound is None else _OUTBOUND if outbound else _INBOUND
        blocks: list[bytes | bytearray | memoryview] = []
        for frame, stamp in zip(frames, stamps, strict=not alike):
            length = len(frame)
            kept = frame if length <= self.snaplen else frame[: self.snaplen]
            pad = _padding[len(kept) & 3]
            total = 44 + len(kept) + len(pad)
            blocks += (
                _packet_head.pack(
                    _ENHANCED_PACKET,
                    total,
                    interface,
                    stamp >> 32 & 0xFFFFFFFF,
                    stamp & 0xFFFFFFFF,
                    len(kept),
                    length,
                ),
                kept,
                pad,
                _packet_tail.pack(_OPT_EPB_FLAGS, 4, flags, _OPT_END, 0, total),
            )
        self._write(b"".join(blocks))
        self.frames += len(blocks) // 4
        return len(blocks) // 4

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush, and close a file opened here. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            if self._owns:
                file.close()
            else:
                file.flush()

    def __enter__(self) -> PcapngWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError("this capture file is closed")
        self._file.write(data)
        self.size_bytes += len(data)

# SPDX-License-Identifier: MIT
"""Read pcapng: sections of either byte order, interfaces with their clocks, three kinds of packet block.

Blocks of other kinds are skipped. Invariant: every length in the file is checked against the block it stands
in before it is used. Format: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pagepool.drivers.capture.captured import MAX_FRAME_BYTES, CapturedFrame, Cursor

__all__ = ["SECTION_HEADER", "read_pcapng"]

SECTION_HEADER = 0x0A0D0D0A
_INTERFACE, _OBSOLETE_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6
_OPT_IF_TSRESOL, _OPT_IF_TSOFFSET = 9, 14
_BYTE_ORDERS = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}


class _Interface(NamedTuple):
    linktype: int
    snaplen: int
    ticks_per_second: int
    offset_s: int

    def nanoseconds(self, ticks: int) -> int:
        return ticks * 1_000_000_000 // self.ticks_per_second + self.offset_s * 1_000_000_000


def read_pcapng(cursor: Cursor) -> Iterator[CapturedFrame]:
    """Yield the frames of a pcapng file.

    Parameters
    ----------
    cursor : Cursor
        After the first four bytes of the file, which said that it is one.

    Raises
    ------
    CaptureError
        At the first block that is not as it should be; the frames before it have been yielded.
    """
    order, interfaces = _section(cursor), list[_Interface]()
    while head := cursor.read_or_end(8, "block header"):
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            # A new section: its byte order is not known before its magic is.
            order, interfaces = _section(cursor, head[4:]), []
            continue
        kind, total = struct.unpack(order + "II", head)
        body = _body(cursor, order, total)
        try:
            if kind == _INTERFACE:
                interfaces.append(_interface(order, body))
            elif kind in (_ENHANCED_PACKET, _OBSOLETE_PACKET):
                yield _packet(kind, order, body, interfaces)
            elif kind == _SIMPLE_PACKET:
                yield _simple_packet(order, body, interfaces)
        except (struct.error, _Damage) as error:
            raise cursor.error(f"the block of type {kind:#x} that ends here is damaged: {error}") from None


class _Damage(Exception):
    """What is wrong inside a block; `read_pcapng` adds where."""


def _section(cursor: Cursor, total_bytes: bytes | None = None) -> str:
    if total_bytes is None:
        total_bytes = cursor.read(4, "section header")
    magic = cursor.read(4, "section header")
    order = _BYTE_ORDERS.get(magic)
    if order is None:
        raise cursor.error(f"a section header with byte order magic {magic.hex()}")
    (total,) = struct.unpack(order + "I", total_bytes)
    body = magic + _body(cursor, order, total, already=4)
    if len(body) < 16:
        raise cursor.error(f"a section header of {total} bytes is too short")
    (major,) = struct.unpack_from(order + "H", body, 4)
    if major != 1:
        raise cursor.error(f"version {major} of pcapng is not known")
    return order


def _body(cursor: Cursor, order: str, total: int, already: int = 0) -> bytes:
    if total < 12 + already or total % 4 or total > MAX_FRAME_BYTES:
        raise cursor.error(f"a block cannot be {total} bytes long")
    body = cursor.read(total - 12 - already, "block")
    (again,) = struct.unpack(order + "I", cursor.read(4, "block"))
    if again != total:
        raise cursor.error(f"a block of {total} bytes ends with the length {again}")
    return body


def _interface(order: str, body: bytes) -> _Interface:
    linktype, _, snaplen = struct.unpack_from(order + "HHI", body)
    ticks, offset_s = 1_000_000, 0
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        at += 4
        if code == 0:
            break
        if at + length > len(body):
            raise _Damage(f"option {code} of {length} bytes leaves its block")
        if code == _OPT_IF_TSRESOL and length == 1:
            power = body[at] & 0x7F
            if power > 63:
                raise _Damage(f"a clock of 2**-{power} or 10**-{power} seconds")
            ticks = 2**power if body[at] & 0x80 else 10**power
        elif code == _OPT_IF_TSOFFSET and length == 8:
            (offset_s,) = struct.unpack_from(order + "q", body, at)
        at += length + (-length & 3)
    return _Interface(linktype, snaplen, ticks, offset_s)


def _packet(kind: int, order: str, body: bytes, interfaces: list[_Interface]) -> CapturedFrame:
    if kind == _ENHANCED_PACKET:
        number, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
    else:
        number, _, high, low, captured, length = struct.unpack_from(order + "HHIIII", body)
    if number >= len(interfaces):
        raise _Damage(f"a frame of interface {number}, of which there are {len(interfaces)}")
    if 20 + captured > len(body):
        raise _Damage(f"{captured} bytes of frame in a block of {len(body) + 12}")
    interface = interfaces[number]
    stamp = interface.nanoseconds(high << 32 | low)
    return CapturedFrame(body[20 : 20 + captured], stamp, max(length, captured), number, interface.linktype)


def _simple_packet(order: str, body: bytes, interfaces: list[_Interface]) -> CapturedFrame:
    if not interfaces:
        raise _Damage("a frame before any interface")
    (length,) = struct.unpack_from(order + "I", body)
    captured = min(length, interfaces[0].snaplen or length)
    if 4 + captured > len(body):
        raise _Damage(f"{captured} bytes of frame in a block of {len(body) + 12}")
    return CapturedFrame(body[4 : 4 + captured], 0, length, 0, interfaces[0].linktype)

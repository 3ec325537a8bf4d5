# SPDX-License-Identifier: MIT
"""The test frames that host and guest agree on: frame ``i`` of a seed is the same bytes on both sides.

Ethernet, IPv4 with a good checksum, UDP without one, then a body that belongs to this frame alone. The IPv4
source and the UDP source port change from frame to frame, so that RSS spreads them over queues. Shared by
guest and host.
"""

from __future__ import annotations

import hashlib
import struct

HOST_MAC = bytes.fromhex("02000000 00fe")
HEADER_BYTES = 14 + 20 + 8
MIN_FRAME_BYTES, MAX_FRAME_BYTES = 60, 1514  # without the checksum that hardware adds


def frame_bytes(index: int, min_bytes: int = MIN_FRAME_BYTES, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """Return the length of frame ``index``: goes through the range in steps that hit odd and even lengths."""
    return min_bytes + index * 37 % (max_bytes - min_bytes + 1)


def make_frame(
    index: int,
    *,
    seed: int = 0,
    destination: bytes = b"\xff" * 6,
    min_bytes: int = MIN_FRAME_BYTES,
    max_bytes: int = MAX_FRAME_BYTES,
) -> bytes:
    """Return frame ``index`` (0 to 65535) of ``seed``, from `HOST_MAC` to ``destination`` (6 bytes)."""
    body_bytes = frame_bytes(index, min_bytes, max_bytes) - HEADER_BYTES
    source, sink = bytes([10, seed & 0xFF, *divmod(index & 0xFFFF, 256)]), bytes([10, 255, 0, 1])
    ipv4 = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + body_bytes, index & 0xFFFF, 0, 64, 17, 0, source, sink)
    ipv4 = ipv4[:10] + struct.pack(">H", _checksum(ipv4)) + ipv4[12:]
    udp = struct.pack(">HHHH", 1024 + index % 60000, 2000 + seed % 1000, 8 + body_bytes, 0)
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    body = (digest * (body_bytes // len(digest) + 1))[:body_bytes]
    return destination + HOST_MAC + b"\x08\x00" + ipv4 + udp + body


def echo_of(frame: bytes) -> bytes:
    """Return the frame as an echo sends it back: Ethernet source and destination exchanged, else the same."""
    return frame[6:12] + frame[:6] + frame[12:]


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF

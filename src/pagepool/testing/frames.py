# SPDX-License-Identifier: MIT
"""Bytes of test frames: Ethernet, IPv4, UDP, nothing else.

Lengths are those that software sees, without the 4-byte frame check sequence: the wire's "64-byte frame" is
60 here.

Sources: RFC 791, RFC 768, RFC 1071 (checksum).
"""

from __future__ import annotations

import socket
import struct

__all__ = ["ETHERNET_HEADER_BYTES", "UDP_PAYLOAD_OFFSET", "ethernet_frame", "udp_frame"]

ETHERNET_HEADER_BYTES = 14
UDP_PAYLOAD_OFFSET = 42  # Ethernet 14 + IPv4 20 + UDP 8


def ethernet_frame(
    payload: bytes, *, src: bytes, dst: bytes, ethertype: int = 0x88B5, vlan: int | None = None
) -> bytes:
    """Return a frame with this payload, padded to 60 bytes; ``vlan`` adds one 802.1Q tag."""
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    return (dst + src + tag + struct.pack("!H", ethertype) + payload).ljust(60, b"\0")


def udp_frame(
    payload: bytes = b"",
    *,
    src: bytes,
    dst: bytes,
    src_ip: str,
    dst_ip: str,
    src_port: int = 4000,
    dst_port: int = 4001,
    length: int = 64,
    ip_options: bytes = b"",
    protocol: int = socket.IPPROTO_UDP,
    vlan: int | None = None,
) -> bytes:
    """Return a UDP-over-IPv4 frame of at least ``length`` bytes.

    Parameters
    ----------
    payload : bytes
        Padded with zeros to ``length``; longer payloads win.
    src, dst : bytes
        MAC numbers, 6 bytes each.
    ip_options : bytes
        A multiple of 4 bytes, at most 40.

    Notes
    -----
    The IPv4 checksum is right, the UDP checksum is 0 ("none"), so ports and payload may be rewritten freely.
    """
    header_bytes = 20 + len(ip_options)
    tag_bytes = 4 if vlan is not None else 0
    payload = payload.ljust(length - ETHERNET_HEADER_BYTES - tag_bytes - header_bytes - 8, b"\0")
    udp = struct.pack("!HHHH", src_port, dst_port, 8 + len(payload), 0) + payload
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | header_bytes // 4,
        0,
        header_bytes + len(udp),
        0,
        0x4000,  # do not fragment
        64,
        protocol,
        0,
        socket.inet_aton(src_ip),
        socket.inet_aton(dst_ip),
    )
    header += ip_options
    header = header[:10] + struct.pack("!H", _internet_checksum(header)) + header[12:]
    return ethernet_frame(header + udp, src=src, dst=dst, ethertype=0x0800, vlan=vlan)


def _internet_checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

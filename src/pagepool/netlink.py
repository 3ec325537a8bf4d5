# SPDX-License-Identifier: MIT
"""Generic netlink, as much of it as it takes to ask the kernel for a list: one family, one dump.

No library behind it, so that looking at the kernel's pools needs nothing but Python. Attributes come back as raw
bytes by number; who asks knows what they mean.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

__all__ = ["Attributes", "attributes", "dump", "number"]

Attributes = dict[int, bytes]

_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHIIBBH")  # length, type, flags, sequence, port; command, version, reserved
_REPLY_BYTES = 1 << 16


def dump(family: str, command: int) -> list[Attributes]:
    """Ask a family of generic netlink for everything that a command lists.

    Raises
    ------
    FileNotFoundError
        The kernel has no such family.
    OSError
        The kernel refused, with its errno.

    Notes
    -----
    Context: any thread; the answer is about its network namespace.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as link:
        link.bind((0, 0))
        name = family.encode() + b"\0"
        asked = struct.pack("=HH", 4 + len(name), _CTRL_ATTR_FAMILY_NAME) + name + bytes(-len(name) % 4)
        found = _ask(link, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _NLM_F_ACK, asked)
        return _ask(link, number(found[0][_CTRL_ATTR_FAMILY_ID]), command, _NLM_F_DUMP, b"")


def attributes(raw: bytes) -> Attributes:
    """Take a run of attributes, or a nested one, apart: number -> value."""
    found = {}
    while len(raw) >= 4:
        length, kind = struct.unpack_from("=HH", raw)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[4:length]
        raw = raw[(length + 3) & ~3 :]
    return found


def number(raw: bytes) -> int:
    """Return an unsigned attribute; netlink's "uint" is 4 bytes or 8, whichever holds it."""
    return int.from_bytes(raw, sys.byteorder)


def _ask(link: socket.socket, kind: int, command: int, flags: int, payload: bytes) -> list[Attributes]:
    length = _HEADER.size + len(payload)
    link.send(_HEADER.pack(length, kind, _NLM_F_REQUEST | flags, 1, 0, command, 1, 0) + payload)
    found: list[Attributes] = []
    while True:
        for answer, body in _messages(link.recv(_REPLY_BYTES)):
            if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                code = -int.from_bytes(body[:4], sys.byteorder, signed=True) if len(body) >= 4 else 0
                if code:
                    raise OSError(code, f"netlink command {command}: {os.strerror(code)} ({errno.errorcode.get(code)})")
                return found
            found.append(attributes(body[4:]))


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 16:
        length, kind = struct.unpack_from("=IH", raw)
        yield kind, raw[16:length]
        raw = raw[(length + 3) & ~3 :]

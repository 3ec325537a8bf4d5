# SPDX-License-Identifier: MIT
"""Generic netlink, as much of it as it takes to ask the kernel: one family, one dump or one request.

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

__all__ = ["Attributes", "attribute", "attributes", "dump", "number", "pairs", "request"]

Attributes = dict[int, bytes]

_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHIIBBH")  # length, type, flags, sequence, port; command, version, reserved
_REPLY_BYTES = 1 << 16
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_ERROR_HEADER_BYTES, _NLMSGERR_ATTR_MSG = 20, 1  # the errno and the header of what was asked


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
    return _transact(family, command, _NLM_F_DUMP, b"")


def request(family: str, command: int, payload: bytes = b"") -> Attributes:
    """Make one request of a family of generic netlink; return the first answer, empty where there is none.

    Parameters
    ----------
    payload : bytes
        Attributes, made by `attribute`.

    Raises
    ------
    FileNotFoundError
        The kernel has no such family.
    OSError
        The kernel refused, with its errno and, where it gives one, its reason.

    Notes
    -----
    Context: any thread; it is about its network namespace.
    """
    found = _transact(family, command, _NLM_F_ACK, payload)
    return found[0] if found else {}


def attribute(kind: int, value: bytes | int = b"") -> bytes:
    """Return one attribute, padded; an int is an unsigned 32-bit one."""
    raw = struct.pack("=I", value) if isinstance(value, int) else value
    return struct.pack("=HH", 4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def attributes(raw: bytes) -> Attributes:
    """Take a run of attributes, or a nested one, apart: number -> value."""
    return dict(pairs(raw))


def pairs(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Take a run of attributes apart where a number may come more than once."""
    while len(raw) >= 4:
        length, kind = struct.unpack_from("=HH", raw)
        if length < 4:
            break
        yield kind & 0x3FFF, raw[4:length]
        raw = raw[(length + 3) & ~3 :]


def number(raw: bytes) -> int:
    """Return an unsigned attribute; netlink's "uint" is 4 bytes or 8, whichever holds it."""
    return int.from_bytes(raw, sys.byteorder)


def _transact(family: str, command: int, flags: int, payload: bytes) -> list[Attributes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as link:
        link.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        link.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        link.bind((0, 0))
        asked = attribute(_CTRL_ATTR_FAMILY_NAME, family.encode() + b"\0")
        found = _ask(link, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _NLM_F_ACK, asked)
        return _ask(link, number(found[0][_CTRL_ATTR_FAMILY_ID]), command, flags, payload)


def _ask(link: socket.socket, kind: int, command: int, flags: int, payload: bytes) -> list[Attributes]:
    length = _HEADER.size + len(payload)
    link.send(_HEADER.pack(length, kind, _NLM_F_REQUEST | flags, 1, 0, command, 1, 0) + payload)
    found: list[Attributes] = []
    while True:
        for answer, body in _messages(link.recv(_REPLY_BYTES)):
            if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                code = -int.from_bytes(body[:4], sys.byteorder, signed=True) if len(body) >= 4 else 0
                if code:
                    said = attributes(body[_ERROR_HEADER_BYTES:]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode()
                    text = f"netlink command {command}: {os.strerror(code)} ({errno.errorcode.get(code)})"
                    raise OSError(code, f"{text}: {said}" if said else text)
                return found
            found.append(attributes(body[4:]))


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 16:
        length, kind = struct.unpack_from("=IH", raw)
        yield kind, raw[16:length]
        raw = raw[(length + 3) & ~3 :]

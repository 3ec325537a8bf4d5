# SPDX-License-Identifier: MIT
"""Bytes of this process by vaddr, for devices in software; a bad vaddr can be asked about before it is touched."""

from __future__ import annotations

import ctypes

from pagepool._core.params import PAGE_SIZE

__all__ = ["copy_memory", "is_memory", "read_memory", "write_memory"]

_libc = ctypes.CDLL(None, use_errno=True)
_mincore = _libc.mincore
_mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def is_memory(vaddr: int, size_bytes: int) -> bool:
    """Whether every page of the range is mapped in this process."""
    first = vaddr & -PAGE_SIZE
    length = vaddr + size_bytes - first
    if vaddr < 0 or vaddr + size_bytes > 1 << 63:
        return False
    if length <= 0:
        return True
    answer = (ctypes.c_ubyte * -(-length // PAGE_SIZE))()
    return bool(_mincore(first, length, answer) == 0)


def read_memory(vaddr: int, size_bytes: int) -> bytes:
    """Return a copy of memory that is there."""
    return ctypes.string_at(vaddr, size_bytes)


def write_memory(vaddr: int, payload: bytes) -> None:
    """Write to memory that is there."""
    ctypes.memmove(vaddr, payload, len(payload))


def copy_memory(to_vaddr: int, from_vaddr: int, size_bytes: int) -> None:
    """Copy memory that is there."""
    ctypes.memmove(to_vaddr, from_vaddr, size_bytes)

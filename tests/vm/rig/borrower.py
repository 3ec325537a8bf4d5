# SPDX-License-Identifier: MIT
"""The host as a consumer of a pool in the guest: both map the same file, and nobody can ring anybody.

The rings are those of `pagepool.shared`, by polling; only the handshake is missing, for a Unix socket does not reach
into a virtual machine.
"""

from __future__ import annotations

import io
import mmap
import os
import time
import zlib
from typing import Any

import numpy as np

from pagepool._core.mapped_range import MappedRange
from pagepool.memory import _libc
from pagepool.shared._borrower import Borrower, SharedRingError

__all__ = ["borrow"]


def borrow(shared: io.FileIO, arena_bytes: int, rings_at: int, count: int, timeout_s: float) -> dict[str, Any]:
    """Take `count` frames, or as many as come in `timeout_s`, and give each page back; see `HostCalls.borrow`."""
    deadline = time.monotonic() + timeout_s
    fd = shared.fileno()
    arena = _mapped(fd, 0, arena_bytes, mmap.PROT_READ)
    rings = _mapped(fd, rings_at, os.fstat(fd).st_size - rings_at, mmap.PROT_READ | mmap.PROT_WRITE)
    borrower = _borrower(arena, rings, deadline)
    block, crcs = np.empty((6, 64), np.uint32), []
    while len(crcs) < count and time.monotonic() < deadline:
        n = borrower.take(block, 64)
        offsets = block[2, :n] if borrower.offset < 0 else np.full(n, borrower.offset)
        for page_id, length, offset in zip(block[0, :n].tolist(), block[1, :n].tolist(), offsets.tolist(), strict=True):
            page = borrower.page(page_id, offset, length)
            crcs.append(zlib.crc32(page))
            page.put()
        if not n:
            time.sleep(0.001)
    return {
        "crcs": crcs,
        "given": borrower.given,
        "lent": borrower.lent,
        "bad": borrower.bad_descriptors + borrower.bad_indexes,
    }


def _mapped(fd: int, at: int, size_bytes: int, prot: int) -> MappedRange:
    return MappedRange(_libc.mmap(0, size_bytes, prot, _libc.MAP_SHARED, fd, at), size_bytes)


def _borrower(arena: MappedRange, rings: MappedRange, deadline: float) -> Borrower:
    """Wait until the guest has laid its rings."""
    while True:
        try:
            return Borrower(arena.vaddr, arena.size_bytes, 0, False, rings.vaddr, rings.size_bytes, -1, (arena, rings))
        except SharedRingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)

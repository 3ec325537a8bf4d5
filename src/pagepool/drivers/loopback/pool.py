# SPDX-License-Identifier: MIT
"""The pool of a loopback queue: what the driver makes when it is given none, and what it asks of one it is given."""

from __future__ import annotations

from typing import Any

from pagepool import DmaDir, PagePool, PPFlag
from pagepool._core.params import PAGE_SIZE
from pagepool.dma.host import HostDevice

__all__ = ["XDP_PACKET_HEADROOM", "check_pool", "make_pool"]

#: Bytes before each frame, for headers that a program pushes; the kernel's number.
XDP_PACKET_HEADROOM = 256


def make_pool(ring_size: int, **fields: Any) -> PagePool:
    """Make a pool as this driver wants it: mapped for the host, both directions, a headroom of 256 bytes."""
    settings: dict[str, Any] = {
        "flags": PPFlag.DMA_MAP,
        "dev": HostDevice("loopback"),
        "dma_dir": DmaDir.BIDIRECTIONAL,
        "pool_size": ring_size,
        "offset": XDP_PACKET_HEADROOM,
        "max_len": PAGE_SIZE - XDP_PACKET_HEADROOM,
    }
    return PagePool(**(settings | fields))


def check_pool(pool: Any) -> int:
    """Return a pool's headroom in bytes, or raise `ValueError` with what is wrong with it."""
    params = pool.params
    if PPFlag.DMA_MAP not in params.flags:
        raise ValueError("the pool of a queue must be mapped: flags=PPFlag.DMA_MAP and a dev")
    return int(params.offset)

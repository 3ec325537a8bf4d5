# SPDX-License-Identifier: MIT
"""What a pool is made with: the kernel's ``struct page_pool_params`` and ours, checked as the kernel checks them.

Plain data, no memory and no device: the same parameters give the same answer on every machine.
Source: ``include/net/page_pool/types.h`` and ``page_pool_init()`` of Linux 6.18 for the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum, IntEnum, IntFlag
from typing import Any

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
MAX_PAGE_ORDER = 9
SLAB_SHIFT = 21
SLAB_SIZE = 1 << SLAB_SHIFT
PAGES_PER_SLAB = SLAB_SIZE // PAGE_SIZE
NUMA_NO_NODE = -1
MAX_NID = 63
MAX_LIMIT = (1 << 31) - 1  # hold and release counters are compared as 32-bit serial numbers

PP_ALLOC_CACHE_SIZE = 128
PP_ALLOC_CACHE_REFILL = 64
PP_DEFAULT_RING_SIZE = 1024
PP_MAX_RING_SIZE = 16384


class PPFlag(IntFlag):
    """``PP_FLAG_*``: what the pool does for the device."""

    DMA_MAP = 1 << 0
    DMA_SYNC_DEV = 1 << 1


class DmaDir(IntEnum):
    """``enum dma_data_direction``: who writes."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2
    NONE = 3


class MapGranularity(Enum):
    """How much memory one ``map`` call of a device covers."""

    ARENA = "arena"
    SLAB = "slab"
    PAGE = "page"


@dataclass(frozen=True, slots=True)
class PagePoolParams:
    """Parameters of one pool.

    Parameters
    ----------
    flags : PPFlag
        ``DMA_MAP``: the pool maps each page for `dev`; ``DMA_SYNC_DEV``: it also syncs for the device on recycle.
    order : int
        log2 of the pages in one object, 0 to 9 (4 KiB to 2 MiB).
    pool_size : int
        Entries of the ptr_ring; 0 means 1024, more than 16384 is clamped. It does not bound the pages outstanding:
        `limit` does.
    nid : int
        Preferred NUMA node, or ``NUMA_NO_NODE`` for the node of the thread that refills.
    dev : DmaDevice or None
        Who must be able to reach the pages. ``None`` with ``DMA_MAP`` is an error.
    dma_dir : DmaDir
        ``FROM_DEVICE``, or ``BIDIRECTIONAL`` where frames may be sent from the page they came in.
    max_len : int
        Bytes of a page to sync for the device at most; 0 only without ``DMA_SYNC_DEV``.
    offset : int
        Bytes to the first byte that the device writes.
    napi : object or None
        The NAPI context that owns the pool; kept for the reader, the owner is a thread.
    limit : int
        Pages (objects) the pool may hold at most, idle ones included; 0 is no limit.
    zero : bool
        Clear a page when it enters the pool from the page allocator, never on recycle.
    memory : PageAllocator, MemoryKind, str or None
        Where pages come from; ``None`` is the process-wide allocator of anonymous memory.
    track : bool
        Remember where each lent page was allocated and put, for error texts and leak reports (slow).
    strict : bool
        Report a handle that dies without a put through ``sys.unraisablehook`` (it still goes home).
    """

    flags: PPFlag = PPFlag(0)
    order: int = 0
    pool_size: int = 0
    nid: int = NUMA_NO_NODE
    dev: Any = None
    dma_dir: DmaDir = DmaDir.BIDIRECTIONAL
    max_len: int = 0
    offset: int = 0
    napi: Any = None
    limit: int = 0
    zero: bool = False
    memory: Any = None
    track: bool = False
    strict: bool = False

    def checked(self) -> PagePoolParams:
        """Return a copy with every field normalised.

        Raises
        ------
        ValueError
            For what the kernel answers with ``-EINVAL``; the text names the field.
        TypeError
            For a field of the wrong type.
        """
        for name in ("flags", "order", "pool_size", "nid", "dma_dir", "max_len", "offset", "limit"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be an int, not {type(getattr(self, name)).__name__}")
        unknown = int(self.flags) & ~int(PPFlag.DMA_MAP | PPFlag.DMA_SYNC_DEV)
        if unknown:
            raise ValueError(f"flags: unknown bits {unknown:#x} (known: DMA_MAP 0x1, DMA_SYNC_DEV 0x2)")
        flags = PPFlag(self.flags)
        if not 0 <= self.order <= MAX_PAGE_ORDER:
            raise ValueError(f"order {self.order} is out of range: 0 to {MAX_PAGE_ORDER} (2 MiB)")
        if self.pool_size < 0:
            raise ValueError(f"pool_size {self.pool_size} is negative")
        if not 0 <= self.limit <= MAX_LIMIT:
            raise ValueError(f"limit {self.limit} is out of range: 0 (none) to {MAX_LIMIT} objects")
        if not NUMA_NO_NODE <= self.nid <= MAX_NID:
            raise ValueError(f"nid {self.nid} is no node: 0 to {MAX_NID}, or NUMA_NO_NODE (-1)")
        object_bytes = PAGE_SIZE << self.order
        if self.max_len < 0 or self.offset < 0 or self.offset + self.max_len > object_bytes:
            raise ValueError(f"offset {self.offset} + max_len {self.max_len} do not fit {object_bytes} bytes")
        try:
            dma_dir = DmaDir(self.dma_dir)
        except ValueError:
            raise ValueError(f"dma_dir {self.dma_dir} is no DmaDir") from None
        if PPFlag.DMA_MAP in flags:
            if dma_dir not in (DmaDir.FROM_DEVICE, DmaDir.BIDIRECTIONAL):
                raise ValueError(f"dma_dir {dma_dir.name}: DMA_MAP needs FROM_DEVICE or BIDIRECTIONAL")
            if self.dev is None:
                raise ValueError("dev: DMA_MAP needs a device to map for")
        if PPFlag.DMA_SYNC_DEV in flags:
            if PPFlag.DMA_MAP not in flags:
                raise ValueError("flags: DMA_SYNC_DEV needs DMA_MAP")
            if self.max_len == 0:
                raise ValueError("max_len 0: DMA_SYNC_DEV needs to know how many bytes to sync")
        ring = min(self.pool_size or PP_DEFAULT_RING_SIZE, PP_MAX_RING_SIZE)
        return replace(self, flags=flags, dma_dir=dma_dir, pool_size=ring)


def make_params(params: PagePoolParams | None, overrides: dict[str, Any]) -> PagePoolParams:
    """Join a parameter object and keyword fields; unknown fields are a `TypeError` that lists the known ones."""
    known = {field.name for field in fields(PagePoolParams)}
    for name in overrides:
        if name not in known:
            raise TypeError(f"unknown field {name!r}; a pool has {', '.join(sorted(known))}")
    if params is None:
        params = PagePoolParams()
    elif not isinstance(params, PagePoolParams):
        raise TypeError(f"params must be PagePoolParams, not {type(params).__name__}")
    return replace(params, **overrides).checked()

# SPDX-License-Identifier: MIT
"""Where pages come from: a page allocator over slabs of anonymous, huge or shared memory, by NUMA node."""

from pagepool.memory.allocator_stats import AllocatorStats
from pagepool.memory.default import default_allocator
from pagepool.memory.kinds import MemoryKind, MemoryKindError
from pagepool.memory.page_allocator import PageAllocator

__all__ = ["AllocatorStats", "MemoryKind", "MemoryKindError", "PageAllocator", "default_allocator"]

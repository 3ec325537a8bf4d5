# SPDX-License-Identifier: MIT
"""What a map and an unmap cost with a real IOMMU driver: single pages against one slab, as ratios.

Emulated time says little, ratios of one run say something; with ``PAGEPOOL_VM_ICOUNT=1`` the guest's clock counts
instructions, and two runs agree to about one in a hundred. Asserted are counts alone. To see the table::

    python -m tests.vm newest --suite map_costs
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from pagepool import DmaDir, PagePool, PPFlag
from pagepool.dma import Counting, VfioDevice
from pagepool.memory import MemoryKind, PageAllocator

from .support.plan import device

BOOTS = ("newest", "virtio_iommu")
PAGE, SLAB = 4096, 2 << 20
PAGES = SLAB // PAGE
ROUNDS = 3
BOTH = DmaDir.BIDIRECTIONAL


def test_a_slab_against_its_pages() -> None:
    """Map and unmap 2 MiB of one huge page: 512 calls of 4 KiB, 32 of 64 KiB, one call."""
    rows = {}
    with VfioDevice(device("edu").bdf, bind=True) as vfio, PageAllocator(SLAB, MemoryKind.HUGETLB) as memory:
        base = PagePool(memory=memory).alloc_pages().vaddr & -SLAB
        for size in (PAGE, 16 * PAGE, SLAB):
            maps, unmaps = [], []
            for _ in range(ROUNDS):
                start = time.perf_counter_ns()
                dma_addrs = [vfio.map(base + at, size, BOTH) for at in range(0, SLAB, size)]
                maps.append(time.perf_counter_ns() - start)
                start = time.perf_counter_ns()
                for dma_addr in dma_addrs:
                    vfio.unmap(dma_addr, size, BOTH)
                unmaps.append(time.perf_counter_ns() - start)
                assert len(set(dma_addrs)) == SLAB // size
            rows[size] = statistics.median(maps), statistics.median(unmaps)
    map_ns, unmap_ns = rows[SLAB]
    print(f"{'2 MiB by':>12} {'map us':>10} {'to slab':>8} {'unmap us':>10} {'to slab':>8}")
    for size, (mapped, unmapped) in rows.items():
        ratios = f"{mapped / 1e3:10.0f} {mapped / map_ns:8.1f} {unmapped / 1e3:10.0f} {unmapped / unmap_ns:8.1f}"
        print(f"{size // 1024:>8} KiB {ratios}")


def test_a_pool_that_recycles_against_a_map_for_each_page() -> None:
    """The pool's steady state has no map, whatever a map costs: by slab, by page, and beside doing without a pool."""
    times = {}
    for name, strict in (("pool, by slab", False), ("pool, by page", True)):
        with VfioDevice(device("edu").bdf, bind=True, strict=strict) as vfio:
            counted = Counting(vfio)
            with PagePool(flags=PPFlag.DMA_MAP, dev=counted, dma_dir=BOTH) as pool:
                pool.put_page(pool.alloc_pages())
                before = counted.counts.maps, counted.counts.unmaps
                times[name] = _time_each(lambda pool=pool: pool.put_page(pool.alloc_pages()), 5000)
                assert (counted.counts.maps, counted.counts.unmaps) == before
                assert pool.stats().recycled >= 5000
    with VfioDevice(device("edu").bdf, bind=True) as vfio, PageAllocator(SLAB) as memory:
        vaddr = PagePool(memory=memory).alloc_pages().vaddr
        times["map and unmap"] = _time_each(lambda: vfio.unmap(vfio.map(vaddr, PAGE, BOTH), PAGE, BOTH), 500)
    fastest = min(times.values())
    for name, ns in times.items():
        print(f"{name:>16} {ns / 1e3:10.2f} us a page {ns / fastest:8.1f}")


def _time_each(call: Callable[[], object], n: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(n):
        call()
    return (time.perf_counter_ns() - start) / n

# SPDX-License-Identifier: MIT
"""Two NUMA nodes: pages come from the device's node, move with `update_nid`, and strays are waived one a refill.

What the kernel's pool does when the CPU that polls changes its node is in the suite `oracle`. No driver of this
machine calls its ``page_pool_update_nid``, so for that the yardstick is its text: set the node, give the cache back
uncounted, leave the ring to the refills.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import Counter
from pathlib import Path

from pagepool import PagePool
from pagepool.memory import PageAllocator, numa

from .support.pci import PciDevice
from .support.plan import device
from .support.suite import cases

BOOTS = ("newest", "oldest")
HUGE_PAGES = "hugepages/hugepages-2048kB/nr_hugepages"


def where(pool: PagePool, ids: array[int]) -> Counter[int]:
    """Count pages by the node that the kernel says they are on."""
    return Counter(numa.node_of(pool.arena.base_vaddr + (page << 12)) for page in ids)


def put_elsewhere(pool: PagePool, ids: array[int]) -> None:
    """Put pages from another thread: into the ring."""
    thread = threading.Thread(target=pool.put_bulk, args=(ids,))
    thread.start()
    thread.join()


@cases("igb0-anonymous", "igb0-memfd", "igb0-hugetlb", "igb1-anonymous", "igb1-memfd", "igb1-hugetlb", "igb1-thp")
def test_pages_come_from_the_devices_node(case: str) -> None:
    """Whatever the CPU: each of 640 pages, the memory of the other kinds too."""
    nic, _, kind = case.partition("-")
    nid = PciDevice(device(nic).bdf).nid
    if kind == "hugetlb":
        (Path("/sys/devices/system/node") / f"node{nid}" / HUGE_PAGES).write_text("4")
    for cpu in (0, 1):
        os.sched_setaffinity(0, {cpu})
        with PageAllocator(64 << 20, kind=kind) as memory, PagePool(memory=memory, nid=nid) as pool:
            ids = pool.alloc_bulk(640)
            assert where(pool, ids) == {nid: 640}, where(pool, ids)
            assert pool.page(ids[0]).nid == nid
            pool.put_bulk(ids[1:])
    print(f"{nic} is on node {nid}, and so are its pages: {kind}")


def test_update_nid_gives_the_cache_back_and_leaves_the_ring() -> None:
    with PageAllocator(64 << 20) as memory, PagePool(memory=memory, nid=0) as pool:
        ids = pool.alloc_bulk(64 * 3)
        assert where(pool, ids) == {0: 192}
        pool.put_bulk(ids[:100])  # the owner: cache
        put_elsewhere(pool, ids[100:])
        before = pool.stats()
        pool.update_nid(1)
        after = pool.stats()
        assert (before.in_cache, after.in_cache, after.in_ring) == (100, 0, 92)
        assert after.inflight == before.inflight - 100
        assert after.kernel() == before.kernel(), "the flush is not counted"
        pool.check()


def test_strays_are_waived_one_a_refill() -> None:
    """The kernel's rule: the first page of another node ends the refill, is released, and the slow path goes on."""
    with PageAllocator(64 << 20) as memory, PagePool(memory=memory, nid=0) as pool:
        ids = pool.alloc_bulk(64 * 2)
        put_elsewhere(pool, ids)
        pool.update_nid(1)
        taken: array[int] = array("I")
        for refills in range(1, 6):
            taken += pool.alloc_bulk(64)  # one refill, which finds a stray at once, and one bulk from node 1
            stats = pool.stats()
            assert (stats.waive, stats.slow, stats.refill) == (refills, 2 + refills, 0), stats
            assert stats.in_ring == 128 - refills
        assert where(pool, taken) == {1: 320}
        pool.put_bulk(taken)


def test_a_stray_ends_a_refill_that_has_pages() -> None:
    with PageAllocator(64 << 20) as memory, PagePool(memory=memory, nid=0) as pool:
        old = pool.alloc_bulk(64)
        pool.update_nid(1)
        new = pool.alloc_bulk(64)
        put_elsewhere(pool, new[:10] + old + new[10:])
        empty = pool.stats().empty
        assert sorted(pool.alloc_bulk(10)) == sorted(new[:10])
        stats = pool.stats()
        assert (stats.refill, stats.waive, stats.empty - empty, stats.in_ring) == (1, 1, 0, 117), stats


def test_a_pool_without_a_node_follows_its_cpu() -> None:
    os.sched_setaffinity(0, {0})
    with PageAllocator(64 << 20) as memory, PagePool(memory=memory) as pool:
        ids = pool.alloc_bulk(64)
        assert where(pool, ids) == {0: 64}
        put_elsewhere(pool, ids)
        os.sched_setaffinity(0, {1})
        ids = pool.alloc_bulk(64)
        assert where(pool, ids) == {1: 64}, where(pool, ids)
        assert pool.stats().waive == 1
        pool.put_bulk(ids)

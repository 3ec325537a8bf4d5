# SPDX-License-Identifier: MIT
"""`AfXdpQueue` on virtio-net: zero copy where the driver has it, carrying traffic both ways from the same pages."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

from pagepool.drivers.af_xdp import AfXdpQueue, open_queues
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.queue_group import QueueGroup
from pagepool.drivers.queue_threads import Handler, QueueThreads
from pagepool.errors import DeviceError
from pagepool.xdp import XdpBatch

from .support import host
from .support.net import bring_up, interface_of
from .support.plan import device
from .support.suite import cases, only_on

BOOTS = ("newest", "oldest")
NIC = "virtio0"
SMALL: dict[str, Any] = {"rx_ring": 256, "tx_ring": 256}


def echo(batch: XdpBatch) -> None:
    """Exchange the Ethernet addresses of all frames in place, and send them from the pages they came in."""
    stations = batch.headers(12)
    destinations = stations[:, 0:6].copy()
    stations[:, 0:6] = stations[:, 6:12]
    stations[:, 6:12] = destinations
    batch.tx()


def interface(nic: str = NIC) -> str:
    """The NIC's interface, up."""
    name = interface_of(device(nic).mac)
    bring_up(name)
    return name


def carry(queue: AfXdpQueue, count: int, look: Callable[[XdpBatch], object] = len) -> set[int]:
    """Echo ``count`` frames of the host, all of them right; return the pages they came in. `look` sees them before."""
    pages: set[int] = set()
    call = host.inject(NIC, count)
    while not call.done():
        batch = queue.poll()
        if batch is None:
            queue.napi.wait(0.01)
            continue
        with batch:
            pages.update(batch.ids.tolist())
            look(batch)
            echo(batch)
    result = call.result()
    assert (result["echoed"], result["wrong"], result["lost"]) == (count, 0, 0), result
    return pages


@only_on("newest")
def test_zero_copy_carries_traffic() -> None:
    with AfXdpQueue(interface(), zerocopy=True, **SMALL) as queue:
        pages = carry(queue, 600)
        pool, fresh = queue.pool, queue.pool.stats().fresh
        print(f"zero copy {queue.is_zerocopy}, {queue.stats().mode}; 600 frames in {len(pages)} pages, {fresh} fresh")
        assert queue.is_zerocopy
        assert fresh <= pool.arena.nr_pages
        pool.check()
        carry(queue, 200)
        assert pool.stats().fresh == fresh, "the steady state took pages from the page allocator"
    assert (pool.lent, pool.inflight) == (0, 0)


@only_on("newest")
def test_zero_copy_is_what_comes_by_itself() -> None:
    with AfXdpQueue(interface(), **SMALL) as queue:
        assert queue.is_zerocopy


@only_on("newest")
@cases("zero copy", "copy")
def test_each_frame_has_the_time_at_which_it_came(way: str) -> None:
    stamps: list[int] = []

    def look(batch: XdpBatch) -> None:
        assert batch.timestamps_ns is not None
        stamps.extend(batch.timestamps_ns.tolist())

    before = time.monotonic_ns()
    with AfXdpQueue(interface(), zerocopy=way == "zero copy", timestamps=True, **SMALL) as queue:
        carry(queue, 100, look)
    print(f"{way}: {len(set(stamps))} times of {len(stamps)} frames in {(stamps[-1] - stamps[0]) / 1e6:.1f} ms")
    assert before < stamps[0]
    assert stamps == sorted(stamps)
    assert stamps[-1] < time.monotonic_ns()
    assert len(set(stamps)) > 50


def test_copy_mode_carries_traffic() -> None:
    with AfXdpQueue(interface(), zerocopy=False, **SMALL) as queue:
        carry(queue, 300)
        assert not queue.is_zerocopy


@only_on("oldest")
def test_a_driver_without_zero_copy_says_so() -> None:
    refused = None
    try:
        AfXdpQueue(interface(), zerocopy=True, **SMALL).close()
    except DeviceError as error:
        refused = error
    print(refused)
    assert refused is not None
    assert refused.errno in (errno.EOPNOTSUPP, errno.EINVAL), refused


@only_on("newest")
@cases("0", "1")
def test_pages_of_the_umem_on_a_node(nid: str) -> None:
    """virtio-net has no node of its own: the UMEM is where its owner asks for it."""
    from pagepool.memory import PageAllocator, numa

    with (
        PageAllocator(4 << 20, nid=int(nid), commit=True) as memory,
        AfXdpQueue(interface(), zerocopy=True, memory=memory, frames=1024, **SMALL) as queue,
    ):
        pages = carry(queue, 100)
        nodes = {numa.node_of(memory.base_vaddr + (page << 12)) for page in pages}
        assert nodes == {int(nid)}, nodes


@only_on("newest")
@cases("one memory, two threads", "one memory, one thread", "a memory for each, two threads")
def test_bridge_between_two_zero_copy_interfaces(what: str) -> None:
    """Both ways at once, every byte; by the pages' ids over one memory, copied and counted between two."""
    os.sched_setaffinity(0, {0})  # threads too: a pool without a node gives pages back that are not where it is polled
    names = [interface("virtio0"), interface("virtio1")]
    how: dict[str, Any] = {"zerocopy": True, "promiscuous": True, **SMALL}
    shared = what.startswith("one memory")
    with open_queues(names, [0], **how) if shared else QueueGroup(AfXdpQueue(name, **how) for name in names) as queues:
        pools = [queue.pool for queue in queues]
        for queue in queues:  # all that the rings of both sides and a batch can hold, so that none is asked for later
            assert queue.is_zerocopy
            queue.pool.put_bulk(queue.pool.alloc_bulk(640))
        before = [pool.stats() for pool in pools]
        seen: list[set[int]] = [set(), set()]
        bridge = Bridge(*queues)
        handlers = [watched(handler, ids) for handler, ids in zip(bridge.handlers, seen, strict=True)]
        with QueueThreads(bridge.queues, handlers, threads=1 if what.endswith("one thread") else 2):
            result = host.cross("virtio0", "virtio1", 300, seed=3).result()
        stats = bridge.stats()
        print(result, stats, f"pages that frames came in: {[len(ids) for ids in seen]}")
        assert result == {"exact": 600, "wrong": 0, "lost": 0}
        for way in (stats.a_to_b, stats.b_to_a):
            assert (way.received, way.refused, way.judged) == (way.forwarded, 0, 0)
            assert way.forwarded >= 300  # and what else the host's port was sent
            assert way.copied == (0 if shared else way.forwarded)
        assert (pools[0].arena is pools[1].arena) == shared
        assert not shared or not seen[0] & seen[1], "a page is in one pool"
        for queue, first in zip(queues, before, strict=True):
            figures = queue.stats()
            assert (figures.zerocopy, figures.socket.rx_dropped, figures.rings.bad_descriptors) == (True, 0, 0)
            now = queue.pool.stats()
            assert now.fresh - first.fresh <= 64 * (now.waive - first.waive)  # none, but for those of a wrong node
            queue.pool.check()
    for pool in pools:
        pool.check()
        assert (pool.lent, pool.inflight) == (0, 0)


def watched(handler: Handler, ids: set[int]) -> Handler:
    """Return the handler, which then also writes down the pages of its frames."""

    def watch(batch: XdpBatch) -> None:
        ids.update(batch.ids.tolist())
        handler(batch)

    return watch

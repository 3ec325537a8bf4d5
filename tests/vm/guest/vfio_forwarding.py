# SPDX-License-Identifier: MIT
"""Bridges between NICs that this process drives itself, and a thread for each of their queues.

The host sends into one NIC and wants every byte out of the other. What is asserted besides: the tx descriptor names the
place that the frame was received at, nothing is allocated or mapped on the way, and every page is home at the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pagepool.dma import VfioDevice
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.loopback import rss_hash
from pagepool.drivers.queue_group import QueueGroup
from pagepool.drivers.queue_threads import Handler, QueueThreads, run_queues
from pagepool.drivers.vfio import VfioQueue, open_queues
from pagepool.xdp import XdpBatch

from .support import host
from .support.frames import make_frame
from .support.plan import device
from .support.suite import cases
from .vfio_nics import echo, is_perfect, open_nic

BOOTS = ("newest", "oldest")
PAGES = 512  # more than two rings of 256 and a batch ever hold


Side = QueueGroup[VfioQueue]


@contextmanager
def pair_of(first: str, second: str, queues: int = 1) -> Iterator[tuple[Side, Side]]:
    """Open two NICs in one I/O address space; each queue's pool has all pages that it will ever need."""
    with on_cpu(0):  # where threads of NICs without a node will run: their pools give pages of other nodes back
        a = VfioDevice(device(first).bdf, bind=True)
        b = VfioDevice(device(second).bdf, bind=True, share=a)
        sides = open_queues(a.bdf, queues, device=a), open_queues(b.bdf, queues, device=b)
        for queue in (*sides[0], *sides[1]):
            fill(queue)
    with all_home(sides[0]) as ours, all_home(sides[1]) as others:
        yield ours, others
        ours.close()
        others.close()
        # Each may have had pages of the other in its tx ring: only now all must be home.


@contextmanager
def all_home(queues: Side) -> Iterator[Side]:
    """Close the queues at the end; then every page must be home, by their pools' own books."""
    pools = [queue.pool for queue in queues]
    with queues:
        yield queues
    for pool in pools:
        pool.check()
        assert pool.lent == 0, pool.holders()


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Stay on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def node_of(queue: VfioQueue) -> int:
    """Return the node of a queue's pages, which here is also its CPU."""
    return max(queue.nic.device.nid, 0)


def fill(queue: VfioQueue) -> None:
    """Put so many pages into a queue's pool that it never asks the page allocator again."""
    ids = queue.pool.alloc_bulk(PAGES)
    assert queue.pool.put_bulk(ids) == PAGES


class Descriptors:
    """Where frames came to and where they were sent from, as the two NICs were told, in order."""

    def __init__(self, source: VfioQueue, target: VfioQueue) -> None:
        self.came: list[int] = []
        self.sent: list[int] = []
        self._source = source
        self._post = target._tx.post
        target._tx.post = self._record  # type: ignore[method-assign]

    def watched(self, handler: Handler) -> Handler:
        """Return a handler of the source's batches that writes down where their frames are."""

        def watch(batch: XdpBatch) -> None:
            dma_addrs = np.empty(len(batch), np.uint64)
            self._source.pool.dma_addrs(batch.ids, dma_addrs)
            self.came += (dma_addrs + batch.offsets).tolist()
            handler(batch)

        return watch

    def _record(self, pool: Any, ids: Any, dma_addrs: Any, lengths: Any) -> int:
        posted = self._post(pool, ids, dma_addrs, lengths)
        self.sent += dma_addrs[:posted].tolist()
        return posted


Figures = list[tuple[int, int, int, dict[int, int]]]


def figures_of(queues: list[VfioQueue]) -> Figures:
    """Return what must not move while frames do, for each queue: pages from the allocator, given back, and mappings."""
    stats = [queue.pool.stats() for queue in queues]
    return [
        (one.fresh, one.waive, queue.pool.inflight, queue.nic.device.mappings)
        for one, queue in zip(stats, queues, strict=True)
    ]


def stood_still(before: Figures, after: Figures) -> bool:
    """Whether nothing moved, but for pages of a wrong NUMA node: a node that ran dry was helped out by the other.

    Such a page goes back when it is met, as the kernel's pool does it, and the pool then takes its 64.
    """
    for (fresh, waive, inflight, mapped), (fresh_now, waive_now, inflight_now, mapped_now) in zip(
        before, after, strict=True
    ):
        taken, waived = fresh_now - fresh, waive_now - waive
        if taken > 64 * waived or inflight_now - inflight != taken - waived or (mapped_now != mapped and not waived):
            return False
    return True


@cases("igb0 virtio1 1", "virtio1 e1000e 1", "igb0 igb1 1", "igb0 igb1 2")
def test_bridge(what: str) -> None:
    """Both ways at once, a thread for each queue, without a copy, a map or an allocation."""
    first, second, n = what.split()
    with pair_of(first, second, int(n)) as (a, b):
        bridge_them(first, second, a, b)


def bridge_them(first: str, second: str, a: Side, b: Side) -> None:
    """Carry frames both ways; look at what every descriptor named, and at the figures that must not move."""
    ways = [Descriptors(one, other) for here, there in ((a, b), (b, a)) for one, other in zip(here, there, strict=True)]
    bridge = Bridge(a, b)
    before = figures_of(bridge.queues)
    handlers = [way.watched(handler) for way, handler in zip(ways, bridge.handlers, strict=True)]
    cpus = [node_of(queue) for queue in bridge.queues]
    with QueueThreads(bridge.queues, handlers, cpus=cpus) as threads:
        for seed in (5, 7):
            result = host.cross(first, second, 100, seed=seed).result()
            assert result == {"exact": 200, "wrong": 0, "lost": 0}
            wait_for(lambda: all(is_asleep(queue) for queue in bridge.queues))  # only an interrupt wakes them again
        assert threads.is_running
    stats = bridge.stats()
    print(stats)
    for way in (stats.a_to_b, stats.b_to_a):
        assert (way.received, way.forwarded, way.refused, way.judged, way.copied) == (200, 200, 0, 0, 0)
    assert all(way.came and way.came == way.sent for way in ways)
    after = figures_of(bridge.queues)
    assert stood_still(before, after), f"{before} became {after}"


def test_bridge_polled_by_one_thread() -> None:
    """`Bridge.run` with one thread for both NICs, which sleeps for both at once."""
    with pair_of("igb1", "virtio1") as (a, b):
        bridge = Bridge(a, b)
        call = host.cross("igb1", "virtio1", 100, seed=7)
        while not call.done():
            bridge.run(0.2, threads=1)
        assert call.result() == {"exact": 200, "wrong": 0, "lost": 0}


def test_bridge_between_memories_that_are_not_shared() -> None:
    """Neither NIC reaches the other's pages: every frame is refused and counted, and its page goes home."""
    with all_home(open_nic("igb0")) as a, all_home(open_nic("virtio1")) as b:
        bridge = Bridge(a, b)
        host.send("igb0", 30).result()
        host.send("virtio1", 20).result()
        deadline = time.monotonic() + 60
        while sum(queue.xdp_stats.rx_frames for queue in bridge.queues) < 50 and time.monotonic() < deadline:
            bridge.poll()
        stats = bridge.stats()
        assert (stats.a_to_b.received, stats.a_to_b.refused, stats.a_to_b.forwarded) == (30, 30, 0)
        assert (stats.b_to_a.received, stats.b_to_a.refused, stats.b_to_a.forwarded) == (20, 20, 0)


@cases("source", "target")
def test_one_side_closes_first(which: str) -> None:
    """The pages of one NIC are in the other's tx ring when either is closed: each goes home once."""
    with pair_of("igb0", "igb1") as ((source,), (target,)):
        call = host.expect("igb1", 40, seed=9)
        host.send("igb0", 40, seed=9)
        while not call.done():
            batch = source.poll()
            if batch is not None:
                with batch:
                    headers = batch.headers(12)
                    headers[:, 0:6] = headers[:, 6:12]  # to the host's station
                    batch.redirect(target)
        assert call.result() == {"exact": 40, "wrong": 0, "lost": 0}
        assert target.stats().tx_posted > 0  # sent, and nobody has looked since
        (source if which == "source" else target).close()


def test_the_target_closes_while_frames_are_redirected_to_it() -> None:
    """By another thread, under way: a frame was sent or refused, never both, never neither."""
    with pair_of("igb0", "igb1") as ((source,), (target,)):
        with QueueThreads([source], lambda batch: batch.redirect(target)):
            for turn in range(6):
                host.send("igb0", 30, first=30 * turn).result()
                if turn == 2:
                    wait_for(lambda: source.xdp_stats.redirect > 0)
                    target.close()
            wait_for(lambda: source.xdp_stats.rx_frames >= 180)
        stats, sent = source.xdp_stats, target.stats().tx_frames
        print(f"{sent} sent, {stats.redirect_dropped} refused")
        assert (stats.rx_frames, stats.redirect, sent + stats.redirect_dropped) == (180, 180, 180)
        assert min(sent, stats.redirect_dropped) > 0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def is_asleep(queue: VfioQueue) -> bool:
    """Whether the thread of a queue sleeps, or is about to, and nothing of ours will wake it."""
    return queue.napi.stats.sleeps > 0 and not queue.napi.is_scheduled


class Worker:
    """The handler of one queue: echoes, and remembers in which thread and on which CPUs."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.cpus: set[frozenset[int]] = set()

    def __call__(self, batch: XdpBatch) -> None:
        self.threads.add(threading.get_ident())
        self.cpus.add(frozenset(os.sched_getaffinity(0)))
        echo(batch)


@cases("2 queues, 2 threads", "4 queues, 4 threads", "4 queues, 1 thread")
def test_threads_for_the_queues_of_an_igb(what: str) -> None:
    """RSS chooses the queue, each queue has its thread and pool, each thread its CPU; they sleep until an interrupt."""
    n, nr_threads, count = int(what[0]), int(what[10]), 150
    workers = [Worker() for _ in range(n)]
    cpus = [number % 2 for number in range(nr_threads)]
    with all_home(open_nic("igb1", n)) as queues:
        with QueueThreads(queues, workers, threads=nr_threads, cpus=cpus) as threads:
            for seed in (n, n + 1):
                result = host.inject("igb1", count, window=32, seed=seed).result()
                assert is_perfect(result, count), result
                wait_for(lambda: all(is_asleep(queue) for queue in queues))  # only an interrupt wakes them again
            assert threads.is_running
        assert threads.frames == 2 * count
        got = [queue.stats().rx_frames for queue in queues]
        print(f"per queue {got}, sleeps {[queue.napi.stats.sleeps for queue in queues]}")
    frames = [make_frame(i, seed=seed) for seed in (n, n + 1) for i in range(count)]
    rows = np.array([np.frombuffer(frame[:60], np.uint8) for frame in frames])
    hashes = rss_hash(rows, np.array([len(frame) for frame in frames], np.uint32))
    assert got == np.bincount((hashes & 127) % n, minlength=n).tolist()
    assert all(len(worker.threads) == 1 for worker in workers)
    assert len(set().union(*(worker.threads for worker in workers))) == nr_threads
    assert [worker.cpus for worker in workers] == [{frozenset({cpus[i % nr_threads]})} for i in range(n)]
    assert threading.get_ident() not in set().union(*(worker.threads for worker in workers))


def test_each_thread_closes_its_own_queue() -> None:
    """All at once: the last to be done, whichever it is, gives the NIC back; it can be opened again."""
    for turn in range(3):
        queues = open_nic("igb0", 4)
        dev, pools = queues[0].nic.device, [queue.pool for queue in queues]
        call = host.inject("igb0", 40, seed=turn)
        together = threading.Barrier(len(queues) + 1)
        threads = [threading.Thread(target=serve_and_close, args=(queue, together)) for queue in queues]
        for thread in threads:
            thread.start()
        assert is_perfect(call.result(), 40), call.result()
        for queue in queues:
            queue.napi.stop()
        together.wait(60)
        for thread in threads:
            thread.join(60)
        assert dev.closed
        assert dev.mappings == {}
        for pool in pools:
            pool.check()
            assert pool.lent == 0, pool.holders()


def serve_and_close(queue: VfioQueue, together: threading.Barrier) -> None:
    """Echo until the queue is told to stop, and close it when all others do."""
    queue.run(echo)
    together.wait(60)
    queue.close()


def test_a_handler_that_raises_ends_all_threads() -> None:
    """It is raised where the threads are joined, the batch in hand is completed, and the NIC goes on afterwards."""

    def handler(batch: XdpBatch) -> None:
        raise OverflowError(f"{len(batch)} frames")

    with all_home(open_nic("igb0", 2)) as queues:
        host.send("igb0", 20).result()
        notes: list[str] = []
        try:
            run_queues(queues, handler, seconds=60)
        except OverflowError as error:
            notes = error.__notes__
        print(notes)
        assert notes, "it was not raised"
        assert "in the thread of" in notes[0]
        while sum(queue.xdp_stats.rx_frames for queue in queues) < 20:
            for queue in queues:
                queue.poll()
        call = host.inject("igb0", 50, seed=2)
        with QueueThreads(queues, echo):
            result = call.result()
        assert is_perfect(result, 50), result

# SPDX-License-Identifier: MIT
"""A bridge between two veth pairs: every frame, both ways, and every page home, whatever happens in the middle."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from pyroute2 import IPRoute
from queues import SMALL, frame_to_near, take, two_wires

from pagepool.drivers.af_xdp import AfXdpQueue, open_queues
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.errors import DeviceError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethEnd, VethPair
from pagepool.xdp import XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

Wires = tuple[VethPair, VethPair]
MILLION = 1_000_000


@pytest.fixture
def wires(request: pytest.FixtureRequest) -> Iterator[Wires]:
    with two_wires(getattr(request, "param", 1)) as both:
        yield both


def sink(end: VethEnd, queue: int = 0) -> AfXdpQueue:
    """Open the far end to see what arrives there."""
    with end.ns:
        return AfXdpQueue(end.ifname, queue, rx_ring=2048, tx_ring=64)


def settled(*queues: AfXdpQueue) -> None:
    for queue in queues:
        assert queue.pool.lent == 0
        queue.pool.check()


def test_every_frame_goes_over_both_ways_unchanged_and_uncopied(wires: Wires) -> None:
    with ExitStack() as stack:
        a, b = stack.enter_context(open_queues(["near", "other"], promiscuous=True))
        ends = [stack.enter_context(sink(pair.far)) for pair in wires]
        frames = [frame_to_near(pair, length=300 + 100 * n) for n, pair in enumerate(wires)]
        senders = [
            stack.enter_context(LiveGenerator(pair.far, frame)) for pair, frame in zip(wires, frames, strict=True)
        ]
        bridge = Bridge(a, b)
        for _ in range(10):
            for sender in senders:
                sender.send(500)
            while bridge.poll():
                pass
            assert take(ends[1], 500) == [frames[0]] * 500
            assert take(ends[0], 500) == [frames[1]] * 500
        stats = bridge.stats()
        for way in (stats.a_to_b, stats.b_to_a):
            assert (way.received, way.forwarded, way.refused, way.judged, way.copied) == (5000, 5000, 0, 0, 0)
        for queue in (a, b):
            assert queue.stats().rings.nr_tx_outstanding == 0
            queue.pool.check()
    settled(a, b)


@pytest.mark.parametrize("wires", [2], indirect=True)
def test_each_queue_to_its_counterpart(wires: Wires) -> None:
    """On veth the transmit queue of one end is the receive queue of the other: the queue survives the bridge."""
    near, other = wires
    senders = {cpu % 2: cpu for cpu in sorted(os.sched_getaffinity(0))}
    with ExitStack() as stack:
        queues = stack.enter_context(open_queues(["near", "other"]))
        assert len(queues) == 4
        ends = [stack.enter_context(sink(other.far, queue)) for queue in (0, 1)]
        bridge = Bridge(queues[:2], queues[2:])
        with QueueThreads(bridge.queues, bridge.handlers):
            for queue, cpu in senders.items():
                with LiveGenerator(near.far, frame_to_near(near), cpu=cpu) as generator:
                    generator.send(400)
                assert len(take(ends[queue], 400)) == 400
        assert bridge.stats().a_to_b.forwarded == 400 * len(senders)
    settled(*queues)


@pytest.mark.parametrize("threads", [False, True])
def test_a_million_frames_without_the_page_allocator(wires: Wires, threads: bool) -> None:
    """Once warm, in both directions: no allocator call, no map, no page enters or leaves, nothing is copied."""
    ring, budget = 1024, 256
    with ExitStack() as stack:
        a, b = queues = stack.enter_context(open_queues(["near", "other"], rx_ring=ring, tx_ring=ring))
        for queue in queues:  # the fill ring has its pages; now those of the rx ring, the other's tx ring, and a batch
            queue.pool.put_bulk(queue.pool.alloc_bulk(2 * ring + budget))
        bridge = Bridge(a, b)
        for pair in wires:
            stack.enter_context(LiveGenerator(pair.far, frame_to_near(pair))).start()

        def carry(frames: int) -> None:
            target = sum(queue.xdp_stats.rx_frames for queue in queues) + frames
            deadline = time.monotonic() + 120
            if threads:
                with QueueThreads(bridge.queues, bridge.handlers, budget=budget) as running:
                    while running.frames < frames and time.monotonic() < deadline:
                        assert not running.wait(0.05)
            else:
                while sum(queue.xdp_stats.rx_frames for queue in queues) < target and time.monotonic() < deadline:
                    bridge.poll(budget)
            assert sum(queue.xdp_stats.rx_frames for queue in queues) >= target

        carry(MILLION // 10)
        arena = a.pool.arena
        assert b.pool.arena is arena
        before = [queue.pool.stats() for queue in queues]
        calls, free = arena.alloc_calls, arena.free_calls
        carry(MILLION)
        after = [queue.pool.stats() for queue in queues]
        assert (arena.alloc_calls, arena.free_calls) == (calls, free)
        for old, new, queue in zip(before, after, queues, strict=True):
            assert (new.slow, new.maps, new.unmaps) == (old.slow, old.maps, old.unmaps)
            assert (new.hold_cnt, new.release_cnt) == (old.hold_cnt, old.release_cnt)
            assert new.ring_full == new.rejected == 0
            assert queue.xdp_stats.redirect == queue.xdp_stats.rx_frames > 0
            assert queue.copied == 0
            queue.pool.check()
        recycled = sum(new.recycled - old.recycled for old, new in zip(before, after, strict=True))
        assert recycled >= MILLION - 4 * budget
    settled(a, b)


def test_backpressure_is_counted_and_no_page_is_lost(wires: Wires) -> None:
    """The other side is down: its ring fills, the rest is refused; up again, it goes on."""
    near, other = wires
    with ExitStack() as stack:
        a, b = stack.enter_context(open_queues(["near", "other"], **SMALL))
        generator = stack.enter_context(LiveGenerator(near.far, frame_to_near(near)))
        bridge = Bridge(a, b)

        def link(state: str) -> None:
            with IPRoute() as route:
                route.link("set", index=other.near.ifindex, state=state)

        def over(count: int) -> None:
            end, start = time.monotonic() + 5, bridge.stats().a_to_b.received
            while bridge.stats().a_to_b.received < start + count and time.monotonic() < end:
                bridge.poll()

        link("down")
        for _ in range(10):
            generator.send(100)
            over(100)
        way = bridge.stats().a_to_b
        assert way.received == way.forwarded + way.refused == 1000
        assert way.forwarded == 256  # the ring
        a.pool.check()
        link("up")
        end = time.monotonic() + 5
        while b.stats().rings.nr_tx_outstanding and time.monotonic() < end:
            bridge.poll()
        generator.send(100)
        over(100)
        assert bridge.stats().a_to_b.refused == way.refused
        assert bridge.stats().a_to_b.forwarded == way.forwarded + 100
    settled(a, b)


def test_what_waits_in_the_ring_is_sent_by_the_targets_own_thread(wires: Wires) -> None:
    """Nobody sends any more when the link comes up again: the sleeping thread of the other side tries by itself."""
    near, other = wires
    with ExitStack() as stack:
        a, b = stack.enter_context(open_queues(["near", "other"], **SMALL))
        generator = stack.enter_context(LiveGenerator(near.far, frame_to_near(near)))
        bridge = Bridge(a, b)
        with IPRoute() as route:
            route.link("set", index=other.near.ifindex, state="down")
        with QueueThreads(bridge.queues, bridge.handlers):
            generator.send(100)
            deadline = time.monotonic() + 5
            while a.xdp_stats.rx_frames < 100 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert b.stats().rings.nr_tx_outstanding == 100
            with IPRoute() as route:
                route.link("set", index=other.near.ifindex, state="up")
            while b.stats().rings.nr_tx_outstanding and time.monotonic() < deadline:
                time.sleep(0.01)
            assert b.stats().rings.nr_tx_outstanding == 0
    settled(a, b)


@pytest.mark.parametrize("which", [0, 1])
def test_an_interface_that_vanishes_in_the_middle(wires: Wires, which: int) -> None:
    with ExitStack() as stack:
        a, b = stack.enter_context(open_queues(["near", "other"], **SMALL))
        senders = [LiveGenerator(pair.far, frame_to_near(pair), rate_pps=20_000, chunk_frames=2000) for pair in wires]
        for sender in senders:
            stack.enter_context(sender).start()
        bridge = Bridge(a, b)
        timer = threading.Timer(0.3, wires[which].delete)
        timer.start()
        with pytest.raises(DeviceError, match=f"{('near', 'other')[which]} queue 0"):
            bridge.run(20)
        timer.join()
        for sender in senders:
            with suppress(DeviceError):  # its end of the pair has gone as well
                sender.stop()
        stats = bridge.stats()
        assert stats.a_to_b.forwarded > 0
        assert stats.b_to_a.forwarded > 0
    settled(a, b)


def test_a_judge_sees_every_frame_and_may_drop_some(wires: Wires) -> None:
    near, other = wires
    with ExitStack() as stack:
        a, b = stack.enter_context(open_queues(["near", "other"], **SMALL))
        end = stack.enter_context(sink(other.far))
        frames = [frame_to_near(near, dst_port=port) for port in (53, 54)]
        senders = [stack.enter_context(LiveGenerator(near.far, frame)) for frame in frames]

        def judge(batch: XdpBatch) -> None:
            batch.drop(batch.headers(42).field(36, ">u2") == 53)

        bridge = Bridge(a, b, judge)
        for sender in senders:
            sender.send(100)
        while bridge.poll():
            pass
        assert take(end, 100) == [frames[1]] * 100
        way = bridge.stats().a_to_b
        assert (way.received, way.forwarded, way.judged) == (200, 100, 100)
    settled(a, b)


def test_sides_without_common_memory_copy_and_say_so(wires: Wires) -> None:
    near, other = wires
    with AfXdpQueue("near", **SMALL) as a, AfXdpQueue("other", **SMALL) as b, sink(other.far) as end:
        bridge = Bridge(a, b)
        frame = frame_to_near(near)
        with LiveGenerator(near.far, frame) as generator:
            generator.send(100)
        while bridge.poll():
            pass
        assert take(end, 100) == [frame] * 100
        assert bridge.stats().a_to_b.copied == 100
        assert not np.shares_memory(a.memory.flat, b.memory.flat)
    settled(a, b)

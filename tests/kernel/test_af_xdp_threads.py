# SPDX-License-Identifier: MIT
"""Several AF_XDP queues in one process: opened by one door, a thread each, closed in any order, under fire."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from queues import SMALL, frame_to_near, take

from pagepool.drivers.af_xdp import AfXdpQueue, QueueClosedError, open_queues
from pagepool.drivers.queue_threads import QueueThreads, run_queues
from pagepool.errors import DeviceError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

two_queues = pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)


@pytest.fixture
def second_pair() -> Iterator[VethPair]:
    with VethPair() as pair:
        yield pair


def drop(batch: XdpBatch) -> None:
    batch.drop()


def by_cpu(veth: VethPair) -> dict[int, int]:
    """A CPU that sends to each queue: on veth it is the sender's that decides."""
    return {cpu % 2: cpu for cpu in sorted(os.sched_getaffinity(0))}


@two_queues
def test_one_door_for_all_queues_of_an_interface(veth: VethPair) -> None:
    with open_queues("near", **SMALL) as queues:
        assert [(queue.name, queue.queue) for queue in queues] == [("near", 0), ("near", 1)]
        assert queues[0].pool.arena is queues[1].pool.arena
        assert queues[0].pool is not queues[1].pool
        assert sum(queue.pool.stats().maps for queue in queues) <= 2  # the arena once
        for queue in queues:
            assert queue.stats().rings.nr_fill == 256
    assert all(queue.closed for queue in queues)
    assert all(queue.pool.inflight == 0 for queue in queues)


@two_queues
def test_the_memory_is_enough_for_all_of_them(veth: VethPair) -> None:
    with open_queues("near", [0, 1], rx_ring=2048, tx_ring=2048) as queues:
        for queue in queues:
            queue.poll()
            assert queue.stats().rings.fill_short == 0
            assert queue.stats().rings.nr_fill == 2048


@two_queues
def test_bad_questions_open_nothing(veth: VethPair) -> None:
    with pytest.raises(ValueError, match="twice"):
        open_queues("near", [0, 0])
    with pytest.raises(ValueError, match="no queue"):
        open_queues("near", [])
    with pytest.raises(DeviceError, match="no such queue"):
        open_queues("near", [0, 1, 7], **SMALL)
    with pytest.raises(DeviceError, match="no such interface"):
        open_queues(["near", "nowhere"], **SMALL)
    with open_queues("near", **SMALL) as queues:  # nothing was left open
        with pytest.raises(ValueError, match="share_umem_with"):
            open_queues("near", [0], frames=512, share_umem_with=queues[0])
        with pytest.raises(DeviceError, match="open over this memory already"):
            open_queues("near", [0], share_umem_with=queues[0], **SMALL)
        queues[0].poll()


@two_queues
def test_a_thread_for_each_queue(veth: VethPair) -> None:
    counts: dict[int, int] = dict.fromkeys((0, 1), 0)
    threads: dict[int, set[int]] = {0: set(), 1: set()}

    def count(batch: XdpBatch) -> None:
        counts[batch.driver.queue] += int(np.count_nonzero(batch.headers(42)[:, 23] == 17))
        threads[batch.driver.queue].add(threading.get_ident())

    senders = by_cpu(veth)
    with ExitStack() as stack:
        queues = stack.enter_context(open_queues("near"))
        generators = [LiveGenerator(veth.far, frame_to_near(veth), cpu=cpu) for cpu in senders.values()]
        for generator in generators:
            stack.enter_context(generator)
        with QueueThreads(queues, count, cpus=[senders.get(index, 0) for index in (0, 1)]):
            for generator in generators:
                for _ in range(10):
                    generator.send(1000)
                    time.sleep(0.01)
            deadline = time.monotonic() + 5
            while sum(counts.values()) < 10_000 * len(senders) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert {queue: counts[queue] for queue in senders} == dict.fromkeys(senders, 10_000)
        for index in senders:
            assert len(threads[index]) == 1
        for queue in queues:
            queue.pool.check()
            assert queue.stats().rings.bad_descriptors == 0
    assert all(queue.pool.lent == 0 for queue in queues)


@two_queues
def test_one_thread_for_both_queues_sleeps_and_hears_of_either(veth: VethPair) -> None:
    senders = by_cpu(veth)
    with open_queues("near") as queues, QueueThreads(queues, drop, threads=1) as threads:
        sent = 0
        for _ in range(10):
            for cpu in senders.values():
                with LiveGenerator(veth.far, frame_to_near(veth), cpu=cpu) as generator:
                    generator.send(50)
                sent += 50
                deadline = time.monotonic() + 5
                while threads.frames < sent and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert threads.frames == sent
        assert all(queue.napi.stats.sleeps > 0 for queue in queues)


@two_queues
def test_one_thread_for_both_hears_that_the_interface_has_gone(veth: VethPair) -> None:
    with open_queues("near") as queues:
        timer = threading.Timer(0.2, veth.delete)
        timer.start()
        with pytest.raises(DeviceError, match="near queue"):
            run_queues(queues, drop, seconds=20, threads=1)
        timer.join()


@two_queues
def test_a_queue_is_opened_and_closed_while_another_runs(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    cpu = max(os.sched_getaffinity(0))
    sender = LiveGenerator(veth.far, frame, cpu=cpu)
    with sender, open_queues("near", [cpu % 2], frames=4 * 6656) as (running,):
        with QueueThreads([running], drop) as threads:
            sender.start()
            before = 0
            for _ in range(5):
                with open_queues("near", [1 - cpu % 2], share_umem_with=running) as (late,):
                    late.poll()
                    late.pool.check()
                    deadline = time.monotonic() + 5
                    while threads.frames < before + 1000 and time.monotonic() < deadline:
                        time.sleep(0.001)
                assert threads.frames >= before + 1000
                before = threads.frames
                assert late.pool.inflight == 0
            sender.stop()
        running.pool.check()


@two_queues
@pytest.mark.parametrize("first", [0, 1])
def test_closed_in_any_order(veth: VethPair, first: int) -> None:
    queues = open_queues("near", **SMALL)
    queues[first].close()
    other = queues[1 - first]
    senders = by_cpu(veth)
    if other.queue in senders:
        with LiveGenerator(veth.far, frame_to_near(veth), cpu=senders[other.queue]) as generator:
            generator.send(100)
            assert len(take(other, 100)) == 100
    other.close()
    queues.close()
    assert all(queue.pool.inflight == 0 for queue in queues)


def descriptors(queue: AfXdpQueue, count: int) -> list[int]:
    """Byte offsets in the UMEM of the first entries of the tx ring, as the kernel reads them."""
    import ctypes

    ring = queue.parts.socket.tx
    assert ring is not None
    raw = (ctypes.c_uint64 * (2 * count)).from_address(ring.descriptors)
    return list(raw)[::2]


def test_redirect_gives_the_device_the_very_address_that_the_frame_came_to(
    veth: VethPair, second_pair: VethPair
) -> None:
    """Pointer equality: the descriptor in the other queue's tx ring is the rx descriptor."""
    with ExitStack() as stack:
        (source,) = stack.enter_context(open_queues("near", frames=4096, **SMALL))
        with second_pair.near.ns:
            (target,) = stack.enter_context(open_queues("near", share_umem_with=source, **SMALL))
        generator = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth)))
        generator.send(64)
        came: list[int] = []

        def forward(batch: XdpBatch) -> None:
            came.extend(((batch.ids.astype(np.uint64) << np.uint64(12)) + batch.offsets).tolist())
            batch.redirect(target)

        take(source, 64, forward)
        assert descriptors(target, 64) == came
        assert source.memory.flat.ctypes.data == target.memory.flat.ctypes.data
        assert target.copied == 0
        assert source.pool.stats().in_cache + source.pool.stats().in_ring >= 64  # home already, by its own thread
        assert target.stats().rings.nr_tx_outstanding == 0


def test_redirect_to_another_arena_copies_and_counts(veth: VethPair, second_pair: VethPair) -> None:
    with ExitStack() as stack:
        (source,) = stack.enter_context(open_queues("near", **SMALL))
        with second_pair.near.ns:
            (target,) = stack.enter_context(open_queues("near", **SMALL))
        generator = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth)))
        generator.send(64)
        with QueueThreads([target], drop):
            take(source, 64, lambda batch: batch.redirect(target))
        assert target.copied == 64
        assert target.stats().rings.tx_completed == 64
        assert source.xdp_stats.redirect_dropped == 0


def test_threads_redirect_to_each_other(veth: VethPair, second_pair: VethPair) -> None:
    """Both ways at once, from two threads, over one memory: every page ends in its own pool."""
    with ExitStack() as stack:
        (a,) = stack.enter_context(open_queues("near", frames=8192, rx_ring=1024, tx_ring=1024))
        with second_pair.near.ns:
            (b,) = stack.enter_context(open_queues("near", share_umem_with=a, rx_ring=1024, tx_ring=1024))
        frame = frame_to_near(veth)
        senders = [stack.enter_context(LiveGenerator(pair.far, frame)) for pair in (veth, second_pair)]
        with QueueThreads([a, b], [lambda batch: batch.redirect(b), lambda batch: batch.redirect(a)]):
            for _ in range(40):
                for sender in senders:
                    sender.send(500)
            deadline = time.monotonic() + 5
            while a.xdp_stats.rx_frames + b.xdp_stats.rx_frames < 20_000 and time.monotonic() < deadline:
                time.sleep(0.01)
        for queue in (a, b):
            queue.poll()
            queue.pool.check()
            assert queue.xdp_stats.rx_frames > 0
            assert queue.xdp_stats.redirect_dropped == 0
            assert queue.stats().rings.bad_descriptors == 0
            assert queue.copied == 0
    for queue in (a, b):
        assert queue.pool.lent == 0
        queue.pool.check()


def test_a_target_is_closed_and_opened_under_fire(veth: VethPair, second_pair: VethPair) -> None:
    """A redirect from another thread meets the close at every point of it, in both directions of time."""
    with ExitStack() as stack:
        (source,) = stack.enter_context(open_queues("near", frames=8192, **SMALL))
        generator = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth), chunk_frames=4096))
        targets: list[AfXdpQueue] = []

        def open_target() -> None:
            with second_pair.near.ns:
                targets.extend(open_queues("near", share_umem_with=source, **SMALL))

        open_target()
        with QueueThreads([source], lambda batch: batch.redirect(targets[-1])):
            generator.start()
            for _ in range(25):
                targets[-1].close()
                assert targets[-1].xdp_xmit(source.pool, np.zeros(1, np.uint32), *2 * [np.zeros(1, np.uint32)]) == 0
                with pytest.raises(QueueClosedError):
                    targets[-1].stats()
                open_target()
                time.sleep(0.002)
            generator.stop()
        source.pool.check()
        stats = source.xdp_stats
        assert stats.redirect == stats.rx_frames > 0
        targets[-1].close()
        assert source.stats().rings.bad_descriptors == 0
        for target in targets:
            assert target.pool.inflight == 0
    assert source.pool.lent == 0
    source.pool.check()


def test_a_close_between_the_post_and_the_kick_gives_each_page_back_once(
    veth: VethPair, second_pair: VethPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes the target when the frames are in its ring: they are the ring's to give back, not ours."""
    with ExitStack() as stack:
        (source,) = stack.enter_context(open_queues("near", frames=4096, **SMALL))
        with second_pair.near.ns:
            (target,) = open_queues("near", share_umem_with=source, **SMALL)
        generator = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth)))
        generator.send(64)
        kick = target.parts.egress.kick

        def close_first() -> None:
            monkeypatch.setattr(target.parts.egress, "kick", kick)
            closer = threading.Thread(target=target.close)
            closer.start()
            closer.join()
            kick()

        monkeypatch.setattr(target.parts.egress, "kick", close_first)
        take(source, 64, lambda batch: batch.redirect(target))
        assert target.closed
        assert (source.xdp_stats.redirect, source.xdp_stats.redirect_dropped) == (64, 0)
        assert source.pool.stats().rejected == 0
        source.pool.check()
    assert source.pool.lent == 0


def test_an_interface_that_vanishes_ends_all_threads_with_its_name(veth: VethPair, second_pair: VethPair) -> None:
    with ExitStack() as stack:
        (a,) = stack.enter_context(open_queues("near", frames=4096, **SMALL))
        with second_pair.near.ns:
            (b,) = stack.enter_context(open_queues("near", share_umem_with=a, **SMALL))
        sender = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth), rate_pps=20_000))
        sender.start()
        timer = threading.Timer(0.3, second_pair.delete)
        timer.start()
        with pytest.raises(DeviceError, match="near queue 0") as caught:
            run_queues([a, b], [lambda batch: batch.redirect(b), drop], seconds=20)
        assert any("in the thread of" in note for note in caught.value.__notes__)
        timer.join()
        assert a.xdp_stats.redirect > 0
        sender.stop()
    for queue in (a, b):
        assert queue.pool.lent == 0
        queue.pool.check()


def test_the_thread_of_the_target_dies(veth: VethPair, second_pair: VethPair) -> None:
    """Nobody polls it any more; what is sent to it still goes out and comes home, by the sender's own thread."""
    with ExitStack() as stack:
        (a,) = stack.enter_context(open_queues("near", frames=4096, **SMALL))
        with second_pair.near.ns:
            (b,) = stack.enter_context(open_queues("near", share_umem_with=a, **SMALL))
        sender = stack.enter_context(LiveGenerator(veth.far, frame_to_near(veth)))
        back = stack.enter_context(LiveGenerator(second_pair.far, frame_to_near(veth)))
        back.send(1)

        def dies(batch: XdpBatch) -> None:
            raise LookupError("dies")

        with pytest.raises(LookupError):
            run_queues([b], dies)
        for _ in range(10):
            sender.send(200)
            assert len(take(a, 200, lambda batch: batch.redirect(b))) == 200
        assert a.xdp_stats.redirect == 2000
        assert a.xdp_stats.redirect_dropped == 0
        assert b.stats().rings.tx_completed == 2000
        a.pool.check()


def test_promiscuous_while_the_queue_is_open(veth: VethPair) -> None:
    def count() -> int:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            (link,) = route.get_links(ifname="near")
            return int(link.get("promiscuity"))

    with open_queues("near", promiscuous=True, **SMALL):
        assert count() == 1
    assert count() == 0

# SPDX-License-Identifier: MIT
"""What is lent: by hand or by redirect, as far as there is room, and only what is the caller's to lend."""

from __future__ import annotations

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, fill, line_of, poll, process, the_consumer

import pagepool as pp
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.drivers.loopback.pool import make_pool
from pagepool.errors import (
    DeadPageError,
    DoublePutError,
    ForeignPageError,
    PagePoolError,
)
from pagepool.shared import AttachedQueue, SharedPool


def test_backpressure_is_counted_and_the_page_stays_the_callers() -> None:
    with SharedPool(pages=512, max_pages=8) as shared, pp.attach(shared.connect()) as queue:
        consumer = the_consumer(shared)
        ids = np.array(shared.pool.alloc_bulk(20), np.uint32)
        assert shared.send(ids) == 8
        assert shared.send(ids[8:]) == 0
        assert consumer.stats().backpressure == 24
        assert not consumer.wait_for_room(1, 0.01)
        batch = poll(queue)
        assert len(batch) == 8
        batch.complete()
        assert consumer.wait_for_room(8, PATIENCE_S)
        assert shared.send(ids[8:]) == 8
        assert shared.pool.put_bulk(ids[16:]) == 4
        shared.check()


def test_a_slow_consumer_does_not_hold_up_another() -> None:
    with SharedPool(pages=512, max_pages=4) as shared:
        slow, quick = pp.attach(shared.connect()), pp.attach(shared.connect())
        assert shared.wait_for_consumers(2, PATIENCE_S)
        total = 0
        for _ in range(10):
            ids = np.array(shared.pool.alloc_bulk(4), np.uint32)
            assert shared.send(ids) == 4
            total += len(poll(quick))
            assert quick.poll() is None
        assert total == 40
        counts = sorted(consumer.stats().sent for consumer in shared.consumers)
        assert counts == [4, 40]
        shared.check()
        slow.close()
        quick.close()


def test_many_more_frames_than_the_ring_holds(shared: SharedPool) -> None:
    program = """
        import pagepool
        total = check = 0
        with pagepool.attach(sock) as queue:
            for batch in queue.poll_forever():
                total += len(batch)
                check += int(batch.headers(4).field(0, "<u4").sum())
        print(total, check, flush=True)
    """
    frames = 100_000
    with process(shared, program) as child:
        consumer = the_consumer(shared)
        rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)
        sent = 0
        ids = np.empty(0, np.uint32)
        while sent < frames:
            if not len(ids):
                ids = np.array(shared.pool.alloc_bulk(min(64, frames - sent)), np.uint32)
                rows[ids, :4] = np.arange(sent, sent + len(ids), dtype="<u4").view(np.uint8).reshape(-1, 4)
            done = consumer.send(ids, 64)
            sent += done
            ids = ids[done:]
            if not done or not len(ids):
                assert consumer.wait_for_room(1, PATIENCE_S)
                if not len(ids) and sent < frames:
                    while shared.pool.lent > 400:
                        consumer.wait_for_room(1000, 1)
        shared.close(PATIENCE_S)
        assert line_of(child) == f"{frames} {frames * (frames - 1) // 2}"
    shared.check()


def loopback_over_a_memory_file(count: int) -> LoopbackQueue:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    pool = make_pool(1024, memory=allocator, zero=True)
    return LoopbackQueue(UdpFlows(flows=4, count=count), pool=pool)


@pytest.mark.parametrize("to_all", [False, True])
def test_a_queue_redirects_what_it_received(to_all: bool) -> None:
    program = """
        import pagepool
        with pagepool.attach(sock) as queue:
            seen = []
            for batch in queue.poll_forever():
                seen += batch.headers(4, at=42).field(0, ">u4").tolist()
        print(len(seen), seen == sorted(seen), flush=True)
    """
    with loopback_over_a_memory_file(5000) as queue, SharedPool(queue.pool) as shared:
        with process(shared, program) as child:
            consumer = the_consumer(shared)
            for batch in queue.poll_forever(budget=64):
                while consumer.link.slots - consumer.link.outstanding < 64:
                    consumer.wait_for_room(64, PATIENCE_S)
                batch.redirect(shared if to_all else consumer)
            shared.close(PATIENCE_S)
            assert line_of(child) == "5000 True"
        assert queue.xdp_stats.redirect == 5000
        assert queue.xdp_stats.redirect_dropped == 0
        stats = consumer.stats()
        assert (stats.sent, stats.returned, stats.outstanding) == (5000, 5000, 0)
        shared.check()
        queue.pool.close()


def test_a_starved_queue_gets_its_pages_without_being_asked() -> None:
    """All pages are with the consumer, so no frame comes and nobody sends: they must come home by themselves."""
    with loopback_over_a_memory_file(10_000) as queue, SharedPool(queue.pool, max_pages=2048) as shared:
        with pp.attach(shared.connect()) as attached:
            consumer = the_consumer(shared)
            kept = []
            while len(kept) < 768:
                batch = queue.poll()
                assert batch is not None
                batch.redirect(consumer)
                batch.complete()
                with poll(attached) as lent:
                    kept += lent.keep()
            lent_before = queue.pool.lent
            kept.clear()
            eventually(lambda: queue.pool.lent <= lent_before - 768)
        queue.pool.close()


def test_a_refused_frame_is_counted_once(shared: SharedPool, queue: AttachedQueue) -> None:
    pool, (consumer,) = shared.pool, shared.consumers
    ids = np.array(pool.alloc_bulk(2), np.uint32)
    lengths, offsets = np.array([5000, 60], np.uint32), np.zeros(2, np.uint32)  # the first does not lie in its page
    assert consumer.xdp_xmit(pool, ids, lengths, offsets) == 0
    assert shared.stats().rejected == 1
    assert consumer.xdp_xmit(pool, ids[::-1].copy(), lengths[::-1].copy(), offsets) == 1
    assert shared.stats().rejected == 2
    assert consumer.stats().backpressure == 0
    pool.put_bulk(ids[:1])


def test_frames_without_room_are_counted_once() -> None:
    with SharedPool(pages=512, max_pages=2) as shared, pp.attach(shared.connect()) as queue:
        assert shared.wait_for_consumers(1, PATIENCE_S)
        pool, (consumer,) = shared.pool, shared.consumers
        ids = np.array(pool.alloc_bulk(5), np.uint32)
        whole, none = np.full(5, 4096, np.uint32), np.zeros(5, np.uint32)
        assert consumer.xdp_xmit(pool, ids, whole, none) == 2
        assert consumer.stats().backpressure == 3
        assert consumer.xdp_xmit(pool, ids[2:], whole[2:], none[2:]) == 0
        assert consumer.stats().backpressure == 6
        poll(queue).complete()
        assert consumer.xdp_xmit(pool, ids[2:], whole[2:], none[2:]) == 2  # it looks at what was given back
        assert consumer.stats().backpressure == 7
        pool.put_bulk(ids[4:])


def test_one_process_may_be_several_consumers(shared: SharedPool, queue: AttachedQueue) -> None:
    with pp.attach(shared.connect()):
        assert shared.wait_for_consumers(2, PATIENCE_S)
        first, second = shared.stats().consumers
        assert second == f"{first} #2"


def test_frames_of_another_arena_are_refused_and_counted(shared: SharedPool, queue: AttachedQueue) -> None:
    with LoopbackQueue(UdpFlows(flows=1, count=64)) as other:
        for batch in other.poll_forever():
            batch.redirect(shared.consumers[0])
        assert other.xdp_stats.redirect_dropped == 64
    assert shared.stats().foreign == 64
    assert queue.poll() is None


def test_two_pools_of_one_arena_are_told_apart() -> None:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    pools = [pp.PagePool(memory=allocator, zero=True) for _ in range(2)]
    with SharedPool(pools) as shared, pp.attach(shared.connect()) as queue:
        consumer = the_consumer(shared)
        ids = [np.array(pool.alloc_bulk(5), np.uint32) for pool in pools]
        for pool, some in zip(pools, ids, strict=True):
            n = np.full(5, 60, np.uint32)
            assert consumer.xdp_xmit(pool, some, n, n * 0) == 5
        with poll(queue) as batch:
            assert batch.queues.tolist() == [0] * 5 + [1] * 5
        eventually(lambda: pools[0].lent == 0)
        eventually(lambda: pools[1].lent == 0)
        shared.check()
    for pool in pools:
        pool.close()


def test_a_handle_is_dead_once_its_page_is_lent(shared: SharedPool, queue: AttachedQueue) -> None:
    (page,) = fill(shared, b"x")
    assert shared.send(page) == 1
    with pytest.raises(DeadPageError):
        memoryview(page)
    with pytest.raises(DoublePutError):
        page.put()
    with pytest.raises(DeadPageError):
        shared.send(page)
    shared.check()


def test_a_page_with_views_is_not_lent(shared: SharedPool, queue: AttachedQueue) -> None:
    (page,) = fill(shared, b"x")
    view = memoryview(page)
    with pytest.raises(PagePoolError, match="views"):
        shared.send(page)
    view.release()
    assert shared.send(page) == 1


def test_a_fragment_or_a_strangers_page_is_not_lent(shared: SharedPool, queue: AttachedQueue) -> None:
    fragment = shared.pool.alloc_frag(512)
    with pytest.raises(ForeignPageError):
        shared.send(fragment)
    fragment.put()
    with pp.PagePool() as other:
        page = other.alloc_pages()
        with pytest.raises(ForeignPageError):
            shared.send(page)
        page.put()


def test_pages_that_are_not_the_callers_are_passed_over_and_counted(shared: SharedPool, queue: AttachedQueue) -> None:
    ids = np.array(shared.pool.alloc_bulk(3), np.uint32)
    for wrong in (0xFFFFFFFF, shared.pool.arena.nr_pages, int(ids[0]), 500):
        assert shared.send(np.array([ids[0], wrong, ids[2]], np.uint32)) == 1, wrong
        shared.check()
        queue.poll()
        queue.poll()
        eventually(lambda: shared.pool.lent == 2)
        ids[0] = shared.pool.alloc_bulk(1)[0]
    assert shared.stats().rejected == 4
    assert shared.send(ids[:1], 4097) == 0
    assert shared.send(ids[:1], 4000, 97) == 0
    assert shared.send(ids[:1], 60, 0xFFFFFFFF) == 0
    assert shared.send(ids) == 3
    assert shared.send(ids) == 0  # with the consumer already
    shared.check()


def test_arrays_must_fit_each_other(shared: SharedPool, queue: AttachedQueue) -> None:
    ids = np.array(shared.pool.alloc_bulk(3), np.uint32)
    with pytest.raises(ValueError, match="length"):
        shared.send(ids, np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="length"):
        shared.send(ids, 4, np.zeros(4, np.uint32))
    with pytest.raises(ValueError, match="length"):
        shared.send(ids, 4, timestamps_ns=np.zeros(4, np.uint64))
    assert shared.pool.put_bulk(ids) == 3

# SPDX-License-Identifier: MIT
"""A pool shared with other processes: frames go there and pages come home, without a copy."""

from __future__ import annotations

import gc
import io
import math
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, line_of, process, the_consumer

import pagepool as pp
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.drivers.loopback.pool import make_pool
from pagepool.errors import (
    DeadPageError,
    DoublePutError,
    ForeignPageError,
    NotMappedError,
    PagePoolError,
    PoolClosedError,
    WrongThreadError,
)
from pagepool.integrations.arrow import to_arrow
from pagepool.shared import AttachedQueue, BorrowedPage, HandshakeError, RevokedError, SharedPool
from pagepool.shared.peer import ask_for_identity
from pagepool.xdp import DeadBatchError


@pytest.fixture
def shared() -> Iterator[SharedPool]:
    with SharedPool(pages=512) as shared:
        yield shared
        shared.check()


@pytest.fixture
def queue(shared: SharedPool) -> Iterator[AttachedQueue]:
    with pp.attach(shared.connect()) as queue:
        the_consumer(shared)
        yield queue


def fill(shared: SharedPool, *texts: bytes) -> list[pp.Page]:
    pages = []
    for text in texts:
        page = shared.pool.alloc_pages()
        page[: len(text)] = text
        pages.append(page)
    return pages


def poll(queue: AttachedQueue, budget: int = 64):  # type: ignore[no-untyped-def]
    for batch in queue.poll_forever(budget, timeout=PATIENCE_S):
        return batch
    raise AssertionError("nothing came")


# -- frames go there, pages come home --------------------------------------------------------------------------------


def test_a_page_goes_to_another_process_and_comes_home(shared: SharedPool) -> None:
    program = """
        import pagepool
        with pagepool.attach(sock) as queue:
            for batch in queue.poll_forever():
                for i in range(len(batch)):
                    print(bytes(batch.frame(i)).decode(), flush=True)
    """
    with process(shared, program) as child:
        consumer = the_consumer(shared)
        assert consumer.peer.pid == child.pid
        for text in (b"one", b"two", b"three"):
            (page,) = fill(shared, text)
            assert shared.send(page, len(text)) == 1
            assert line_of(child) == text.decode()
        eventually(lambda: shared.pool.lent == 0, "the pages never came home")
        assert (consumer.stats().sent, consumer.stats().returned) == (3, 3)
        shared.close()
        assert child.wait(PATIENCE_S) == 0


def test_a_batch_has_the_face_of_every_batch(shared: SharedPool, queue: AttachedQueue) -> None:
    ids = np.array(shared.pool.alloc_bulk(10), np.uint32)
    rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)
    rows[ids, 4:64] = np.arange(60, dtype=np.uint8)
    rows[ids, 14] = np.arange(10)
    assert shared.send(ids, 60, 4, queue=7, timestamps_ns=np.arange(10) + 5) == 10
    batch = poll(queue)
    assert batch.ids.tolist() == ids.tolist()
    assert batch.lengths.tolist() == [60] * 10
    assert batch.offsets.tolist() == [4] * 10
    assert batch.queues.tolist() == [7] * 10
    assert batch.timestamps_ns.tolist() == [*range(5, 15)]
    headers = batch.headers(14)
    assert headers[:, 10].tolist() == [*range(10)]
    assert headers.field(0, ">u2").tolist() == [1] * 10
    assert bytes(batch.frame(3)) == bytes([*range(10), 3, *range(11, 60)])
    assert queue.pool.lent == 10
    batch.complete()
    with pytest.raises(DeadBatchError):
        batch.frame(0)
    eventually(lambda: shared.pool.lent == 0)
    assert queue.xdp_stats.none == 10


def test_frames_of_different_offsets_and_lengths(shared: SharedPool, queue: AttachedQueue) -> None:
    ids = np.array(shared.pool.alloc_bulk(130), np.uint32)
    lengths, offsets = np.arange(130, dtype=np.uint32), np.arange(130, dtype=np.uint32)[::-1] * 3
    assert shared.send(ids, lengths, offsets) == 130
    got = [(batch.ids.tolist(), batch.lengths.tolist(), batch.offsets.tolist()) for batch in (poll(queue, 130),)]
    assert got == [(ids.tolist(), lengths.tolist(), offsets.tolist())]


def test_the_frame_is_the_page_itself(shared: SharedPool, queue: AttachedQueue) -> None:
    (page,) = fill(shared, b"before")
    page_id = page.id
    mine = np.frombuffer(shared.allocator.view(), np.uint8)[page_id << 12 :]
    shared.send(page, 6)
    batch = poll(queue)
    mine[:6] = np.frombuffer(b"after!", np.uint8)  # what the lender writes now is there at once: nothing was copied
    assert bytes(batch.frame(0)) == b"after!"
    assert int(batch.ids[0]) == page_id


def test_a_store_into_borrowed_memory_raises_and_kills_nobody(shared: SharedPool, queue: AttachedQueue) -> None:
    shared.send(fill(shared, b"x")[0])
    batch = poll(queue)
    with pytest.raises(ValueError, match="read-only"):
        batch.headers(4)[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        batch.headers(4)[:, 0] = 1
    with pytest.raises(TypeError):
        batch.frame(0)[0] = 1
    (page,) = batch.keep()
    with pytest.raises(TypeError):
        page[0:1] = b"y"
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(b"abc").readinto(page)


def test_a_writable_consumer_writes(tmp_path: Path) -> None:
    with SharedPool(pages=512, writable=True) as shared, pp.attach(shared.connect(), writable=True) as queue:
        the_consumer(shared)
        ids = np.array(shared.pool.alloc_bulk(1), np.uint32)
        shared.send(ids)
        with poll(queue) as batch:
            batch.headers(4)[:, 0] = 77
            batch.frame(0)[1] = 78
        eventually(lambda: shared.pool.lent == 0)
        assert bytes(shared.allocator.view()[int(ids[0]) << 12 :][:2]) == bytes([77, 78])


def test_every_consumer_gets_the_page_and_the_last_takes_it_home(shared: SharedPool) -> None:
    with pp.attach(shared.connect()) as first, pp.attach(shared.connect()) as second:
        assert shared.wait_for_consumers(2, PATIENCE_S)
        (page,) = fill(shared, b"both")
        assert shared.send(page, 4) == 1
        one, two = poll(first), poll(second)
        assert (bytes(one.frame(0)), bytes(two.frame(0))) == (b"both", b"both")
        one.complete()
        assert [consumer.link.reap() for consumer in shared.consumers] == [0, 0]
        assert shared.pool.lent == 1
        shared.check()
        two.complete()
        eventually(lambda: shared.pool.lent == 0)


def test_one_consumer_of_several(shared: SharedPool) -> None:
    with pp.attach(shared.connect()) as first, pp.attach(shared.connect()) as second:
        assert shared.wait_for_consumers(2, PATIENCE_S)
        target = shared.consumers[1]
        assert target.send(fill(shared, b"only")[0], 4) == 1
        assert shared.consumers[0].stats().sent == 0
        got = first.poll() or second.poll()
        assert got is not None
        assert bytes(got.frame(0)) == b"only"


def test_nobody_there_the_page_stays(shared: SharedPool) -> None:
    (page,) = fill(shared, b"x")
    assert shared.send(page) == 0
    assert page.is_live
    assert bytes(page[:1]) == b"x"
    page.put()


# -- keep ------------------------------------------------------------------------------------------------------------


def test_a_kept_frame_goes_home_with_its_last_view(shared: SharedPool, queue: AttachedQueue) -> None:
    shared.send(fill(shared, b"kept")[0], 4)
    batch = poll(queue)
    (page,) = batch.keep()
    assert isinstance(page, BorrowedPage)
    batch.complete()
    view = memoryview(page)
    array = np.frombuffer(page, np.uint8)
    page.put()
    with pytest.raises(DeadPageError):
        memoryview(page)
    with pytest.raises(DoublePutError):
        page.put()
    assert bytes(view) == b"kept"
    view.release()
    shared.reap()
    assert shared.pool.lent == 1
    assert bytes(array) == b"kept"
    del array
    gc.collect()
    eventually(lambda: shared.pool.lent == 0)


def test_a_kept_frame_that_dies_is_given_back(shared: SharedPool, queue: AttachedQueue) -> None:
    for text in (b"a", b"b"):
        shared.send(fill(shared, text)[0], 1)
    with poll(queue) as batch:
        pages = batch.keep()
    assert [bytes(page) for page in pages] == [b"a", b"b"]
    assert len(pages[0]) == 1
    assert pages[0].vaddr == queue.pool.arena.base_vaddr + (pages[0].id << 12)
    del pages
    eventually(lambda: shared.pool.lent == 0)


def test_a_kept_frame_outlives_its_queue(shared: SharedPool) -> None:
    with pp.attach(shared.connect()) as queue:
        consumer = the_consumer(shared)
        shared.send(fill(shared, b"still here")[0], 10)
        with poll(queue) as batch:
            (page,) = batch.keep()
    del queue, batch
    gc.collect()
    assert bytes(page) == b"still here"
    assert consumer.link.outstanding == 1  # closed, but it still has a page: nothing is taken from it
    page.put()
    assert shared.wait_until_gone(PATIENCE_S)
    assert shared.pool.lent == 0
    assert consumer.stats().returned == 1


def test_kept_frames_may_die_in_any_thread(shared: SharedPool, queue: AttachedQueue) -> None:
    ids = np.array(shared.pool.alloc_bulk(256), np.uint32)
    assert shared.send(ids) == 256
    with poll(queue, 256) as batch:
        pages = batch.keep()
    parts = [pages[k::4] for k in range(4)]
    del pages
    threads = [threading.Thread(target=part.clear) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: shared.pool.lent == 0)
    assert shared.consumers[0].stats().returned == 256


def test_what_was_never_taken_goes_home_at_close(shared: SharedPool) -> None:
    queue = pp.attach(shared.connect())
    the_consumer(shared)
    shared.send(np.array(shared.pool.alloc_bulk(50), np.uint32))
    queue.close()
    assert shared.wait_until_gone(PATIENCE_S)
    assert shared.pool.lent == 0
    assert shared.stats().lost == 0  # given back, not taken back


# -- backpressure ----------------------------------------------------------------------------------------------------


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


# -- received traffic ------------------------------------------------------------------------------------------------


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


# -- what may be sent ------------------------------------------------------------------------------------------------


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


# -- threads, sleep, end ---------------------------------------------------------------------------------------------


def test_one_thread_polls(shared: SharedPool, queue: AttachedQueue) -> None:
    queue.poll()
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            queue.poll()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [type(error) for error in errors] == [WrongThreadError]


def test_several_threads_send(shared: SharedPool) -> None:
    allocator = pp.PageAllocator(8 << 20, "memfd", commit=True)
    pools = [pp.PagePool(memory=allocator, zero=True) for _ in range(4)]
    with SharedPool(pools, max_pages=256) as several, pp.attach(several.connect()) as queue:
        consumer = the_consumer(several)

        def produce(pool: pp.PagePool) -> None:
            sent = 0
            while sent < 2000:
                ids = np.array(pool.alloc_bulk(20), np.uint32)
                n = np.full(len(ids), 60, np.uint32)
                done = consumer.xdp_xmit(pool, ids, n, n * 0)
                sent += done
                pool.put_bulk(ids[done:])
                if done < len(ids):
                    consumer.wait_for_room(20, PATIENCE_S)

        threads = [threading.Thread(target=produce, args=(pool,)) for pool in pools]
        for thread in threads:
            thread.start()
        total = np.zeros(4, int)
        for batch in queue.poll_forever(timeout=PATIENCE_S):
            total += np.bincount(batch.queues, minlength=4)
            batch.complete()
            if not any(thread.is_alive() for thread in threads) and not queue.stats().backlog:
                break
        for thread in threads:
            thread.join()
        assert (total >= 2000).all()
        eventually(lambda: not several.holders())
        several.check()
    for pool in pools:
        pool.close()


def test_a_sleeper_is_woken_once_for_each_sleep(shared: SharedPool, queue: AttachedQueue) -> None:
    assert queue.poll() is None  # has armed its bell
    for text in (b"a", b"b", b"c"):
        shared.send(fill(shared, text)[0])
    assert shared.consumers[0].stats().bells == 1
    assert len(poll(queue)) == 3


def test_a_spinning_queue_is_never_rung(shared: SharedPool) -> None:
    with pp.attach(shared.connect(), spin=True) as queue:
        consumer = the_consumer(shared)
        for _ in range(5):
            assert queue.poll() is None
            shared.send(fill(shared, b"x")[0])
            for _batch in queue.poll_forever(busy_poll_us=math.inf):
                break
        assert consumer.stats().bells == 0


def test_the_queue_ends_when_the_lender_closes(shared: SharedPool, queue: AttachedQueue) -> None:
    shared.send(fill(shared, b"last")[0], 4)
    done: list[list[object]] = []
    thread = threading.Thread(target=lambda: done.append(shared.close(PATIENCE_S)))  # type: ignore[func-returns-value]
    thread.start()
    seen = [bytes(batch.frame(0)) for batch in queue.poll_forever(timeout=PATIENCE_S)]
    thread.join()
    assert seen == [b"last"]
    assert queue.is_finished
    assert not queue.is_revoked
    assert done == [[]]
    with pytest.raises(PoolClosedError):
        shared.send(np.zeros(1, np.uint32))


def test_close_takes_back_what_is_not_given_back(shared: SharedPool, queue: AttachedQueue) -> None:
    consumer = shared.consumers[0]
    shared.send(fill(shared, b"held")[0], 4)
    with poll(queue) as batch:
        (page,) = batch.keep()
    assert shared.close(0.01) == []
    assert (shared.pool.lent, consumer.stats().recalled) == (0, 1)
    assert queue.is_revoked
    assert bytes(page) == b"held"  # mapped as long as it likes
    with pytest.raises(RevokedError):
        queue.poll()


def test_closing_twice_and_sending_after(shared: SharedPool) -> None:
    assert shared.close() == []
    assert shared.close() == []
    with pytest.raises(PoolClosedError):
        shared.connect()


def test_nothing_can_be_allocated_or_mapped_at_a_consumer(shared: SharedPool, queue: AttachedQueue) -> None:
    shared.send(fill(shared, b"x")[0])
    batch = poll(queue)
    assert not hasattr(queue.pool, "alloc_pages")
    with pytest.raises(NotMappedError):
        _ = batch.dma_addr
    with pytest.raises(ForeignPageError):
        queue.pool.page(int(batch.ids[0]) + 1)
    assert queue.pool.put_bulk(np.array([99, 0xFFFFFFFF], np.uint32)) == 0
    assert queue.stats().rejected == 2
    batch.tx()
    batch.complete()
    assert queue.xdp_stats.tx_dropped == 1


# -- the door --------------------------------------------------------------------------------------------------------


def test_by_a_path(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with SharedPool(pages=512, path=path) as shared:
        assert path.stat().st_mode & 0o777 == 0o600
        with pp.attach(path, arena_id=shared.arena_id) as queue:
            the_consumer(shared)
            shared.send(fill(shared, b"hi")[0], 2)
            assert bytes(poll(queue).frame(0)) == b"hi"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        pp.attach(path)


def test_a_consumer_may_speak_before_it_is_asked_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first message then comes without the sender's name, and the connection has to tell."""

    accepted, spoken = threading.Event(), threading.Event()

    def late(sock: socket.socket) -> None:
        accepted.set()
        spoken.wait(PATIENCE_S)
        ask_for_identity(sock)

    class Early(socket.socket):
        def send(self, *message: Any) -> int:
            sent = super().send(*message)
            spoken.set()
            return sent

    monkeypatch.setattr("pagepool.shared.reception.ask_for_identity", late)
    with SharedPool(pages=512, path=tmp_path / "sock") as shared:
        sock = Early(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(tmp_path / "sock"))
        assert accepted.wait(PATIENCE_S)
        with pp.attach(sock):
            assert the_consumer(shared).peer.pid == os.getpid()
            assert the_consumer(shared).peer.is_alive


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with SharedPool(pages=512, path=path), pytest.raises(OSError, match="in use"):
        SharedPool(pages=512, path=path)
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        SharedPool(pages=512, path=path)
    assert path.read_text() == "a file"


def test_a_socket_left_by_the_dead_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
        old.bind(str(path))
    with SharedPool(pages=512, path=path), pp.attach(path):
        pass


def test_another_users_process_is_refused(tmp_path: Path) -> None:
    with SharedPool(pages=512, uids=[12345]) as shared:
        with pytest.raises(HandshakeError, match="is not served here"):
            pp.attach(shared.connect())
        assert shared.stats().refused == 1


def test_writing_must_be_offered(shared: SharedPool) -> None:
    with pytest.raises(HandshakeError, match="reading only"):
        pp.attach(shared.connect(), writable=True)


def test_the_wrong_arena_is_refused(shared: SharedPool) -> None:
    with pytest.raises(HandshakeError, match="another arena"):
        pp.attach(shared.connect(), arena_id=bytes(15) + b"x")
    assert shared.stats().last_refusal.startswith("this is another arena")


def test_a_pool_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="no pools"):
        SharedPool([])
    with pp.PagePool(zero=True) as private, pytest.raises(ValueError, match="memfd"):
        SharedPool(private)
    growing = pp.PagePool(zero=True, memory=pp.PageAllocator(64 << 20, "memfd"))
    with growing, pytest.raises(ValueError, match="commit=True"):
        SharedPool(growing)
    dirty = pp.PagePool(memory=pp.PageAllocator(2 << 20, "memfd", commit=True))
    with dirty, pytest.raises(ValueError, match="zero=True"):
        SharedPool(dirty)
    with pytest.raises(ValueError, match="power of two"):
        SharedPool(max_pages=1000)


def test_pages_of_higher_orders() -> None:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    pool = pp.PagePool(memory=allocator, zero=True, order=2)
    with pool, SharedPool(pool) as shared, pp.attach(shared.connect()) as queue:
        the_consumer(shared)
        page = pool.alloc_pages()
        page[16383:] = b"z"
        assert shared.send(page) == 1
        batch = poll(queue)
        assert len(batch.frame(0)) == 16384
        assert batch.frame(0)[16383] == ord("z")


@pytest.mark.parametrize("closed", [False, True])
def test_the_interpreter_ends_with_pages_kept(shared: SharedPool, closed: bool) -> None:
    """The collector takes everything down in any order; a page must still find the rings to give itself back."""
    program = f"""
        import pagepool
        queue = pagepool.attach(sock)
        batch = next(queue.poll_forever())
        kept = batch.keep()
        kept.append(kept)
        batch.complete()
        queue.cycle = [queue, kept, batch]
        if {closed}:
            queue.close()
        print("kept", flush=True)
        os.close(1)
        import warnings
        warnings.simplefilter("ignore")
    """
    with process(shared, program) as child:
        consumer = the_consumer(shared)
        shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
        assert line_of(child) == "kept"
        assert child.wait(PATIENCE_S) == 0
        assert shared.wait_until_gone(PATIENCE_S)
        assert consumer.stats().bad_returns == 0
        assert shared.pool.lent == 0


def test_a_cycle_of_everything_is_collected(shared: SharedPool) -> None:
    queue = pp.attach(shared.connect())
    the_consumer(shared)
    shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
    with poll(queue) as batch:
        kept = batch.keep()
    queue.close()
    queue.cycle = [queue, kept, batch, memoryview(kept[0]), np.frombuffer(kept[1], np.uint8)]  # type: ignore[attr-defined]
    del queue, kept, batch
    gc.collect()
    assert shared.wait_until_gone(PATIENCE_S)
    assert shared.pool.lent == 0
    assert shared.stats().lost == 0  # each page gave itself back


@pytest.mark.needs_pyarrow
def test_frames_of_another_process_as_an_arrow_batch(shared: SharedPool, queue: AttachedQueue) -> None:
    """The payload column lies in the other process's pages, and they go home with the last Arrow reference."""
    import pyarrow

    texts = [b"a frame of thirty bytes, no less", b"and another one that is longer yet"]
    for page, text in zip(fill(shared, *texts), texts, strict=True):
        shared.send(page, len(text))
    batch = poll(queue)
    arrow = pyarrow.record_batch(to_arrow(batch))
    batch.complete()
    assert queue.pool.lent == 2
    assert arrow.column("payload").to_pylist() == texts
    del arrow, batch
    gc.collect()
    assert queue.pool.lent == 0
    eventually(lambda: shared.pool.lent == 0)

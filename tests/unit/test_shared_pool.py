# SPDX-License-Identifier: MIT
"""A pool shared with other processes: frames go there and pages come home, without a copy."""

from __future__ import annotations

import gc
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, fill, line_of, poll, process, the_consumer

import pagepool as pp
from pagepool.errors import (
    DeadPageError,
    DoublePutError,
)
from pagepool.shared import AttachedQueue, BorrowedPage, SharedPool
from pagepool.xdp import DeadBatchError


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

# SPDX-License-Identifier: MIT
"""Who polls, who sleeps, and how it ends."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, fill, poll, the_consumer

import pagepool as pp
from pagepool.errors import (
    ForeignPageError,
    NotMappedError,
    PoolClosedError,
    WrongThreadError,
)
from pagepool.shared import AttachedQueue, RevokedError, SharedPool


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
        while any(thread.is_alive() for thread in threads) or queue.stats().backlog:
            for batch in queue.poll_forever(timeout=0.1):
                total += np.bincount(batch.queues, minlength=4)
                batch.complete()
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

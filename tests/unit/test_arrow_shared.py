# SPDX-License-Identifier: MIT
"""Frames that another process lends, as Arrow arrays: read where they lie, given back with the last reference."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arrow_doubles import Array, payloads, release, taken
from shared_doubles import PATIENCE_S, eventually, the_consumer
from test_arrow_batch import column, numbers

import pagepool as pp
from pagepool.integrations.arrow import ALL_COLUMNS, ArrowBacklogError, arrow_stream, to_arrow
from pagepool.integrations.arrow.backlog import Backlog
from pagepool.shared import AttachedQueue, SharedPool
from pagepool.testing.frames import udp_frame

FRAME = udp_frame(src=bytes(6), dst=bytes(6), src_ip="10.1.2.3", dst_ip="10.3.2.1", dst_port=53)


@pytest.fixture(params=[False, True], ids=["read-only", "writable"])
def shared(request: pytest.FixtureRequest) -> Iterator[SharedPool]:
    with SharedPool(pages=512, writable=request.param) as shared:
        yield shared
        shared.check()


@pytest.fixture
def queue(shared: SharedPool) -> Iterator[AttachedQueue]:
    with pp.attach(shared.connect(), writable=shared.writable) as queue:
        the_consumer(shared)
        yield queue


def send(shared: SharedPool, n: int) -> None:
    ids = np.array(shared.pool.alloc_bulk(n), np.uint32)
    rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)
    rows[ids, 4 : 4 + len(FRAME)] = np.frombuffer(FRAME, np.uint8)
    assert shared.send(ids, len(FRAME), 4, queue=3, timestamps_ns=np.full(n, time.monotonic_ns())) == n


def poll(queue: AttachedQueue) -> Any:
    for batch in queue.poll_forever(64, timeout=PATIENCE_S):
        return batch
    raise AssertionError("nothing came")


def test_borrowed_frames_go_back_with_the_last_arrow_reference(shared: SharedPool, queue: AttachedQueue) -> None:
    send(shared, 10)
    with poll(queue) as batch:
        arrow = to_arrow(batch, columns=ALL_COLUMNS)
    array = taken(arrow.__arrow_c_array__()[1], Array)
    arrow.close()
    assert shared.pool.lent == queue.pool.lent == 10
    assert payloads(column(array, arrow, "payload")) == [FRAME] * 10
    assert payloads(column(array, arrow, "src_ip")) == [b"10.1.2.3"] * 10
    assert numbers(column(array, arrow, "queue"), "u2") == [3] * 10
    (when,) = set(numbers(column(array, arrow, "timestamp"), "i8"))
    assert 0 <= time.time_ns() // 1000 - when < 60_000_000
    thread = threading.Thread(target=release, args=(array,))
    thread.start()
    thread.join()
    eventually(lambda: shared.pool.lent == 0, "the pages never came home")
    assert queue.pool.lent == 0


def test_the_memory_stays_when_the_queue_is_closed(shared: SharedPool) -> None:
    with pp.attach(shared.connect()) as queue:
        the_consumer(shared)
        send(shared, 4)
        with poll(queue) as batch:
            arrow = to_arrow(batch, columns=["payload"])
        array = taken(arrow.__arrow_c_array__()[1], Array)
        arrow.close()
        del batch
    del queue
    assert payloads(array.children[0].contents) == [FRAME] * 4
    release(array)
    eventually(lambda: shared.pool.lent == 0, "the pages never came home")


def test_a_stream_of_borrowed_frames_is_bounded(shared: SharedPool, queue: AttachedQueue) -> None:
    send(shared, 100)
    eventually(lambda: queue.stats().backlog == 100)
    stream = arrow_stream(queue, columns=["payload"], limit=64, budget=64, timeout=PATIENCE_S)
    first = stream.read_next()
    assert first is not None
    assert (len(first), Backlog(queue.pool, 64).room) == (64, 0)
    with pytest.raises(ArrowBacklogError):
        stream.read_next()
    first.close()
    second = stream.read_next()
    assert second is not None
    assert len(second) == 36
    second.close()
    eventually(lambda: shared.pool.lent == 0)


def test_frames_of_another_process_cannot_be_shared_twice(shared: SharedPool, queue: AttachedQueue) -> None:
    send(shared, 2)
    with poll(queue) as batch:
        with pytest.raises(TypeError, match="cannot be shared with BorrowedPool"):
            to_arrow(batch, shared=True)
        pages = batch.keep()
    arrow = to_arrow(pages, columns=["payload", "dst_port"])
    pages.clear()
    assert shared.pool.lent == 2
    array = taken(arrow.__arrow_c_array__()[1], Array)
    assert payloads(array.children[0].contents) == [FRAME] * 2
    assert numbers(array.children[1].contents, "u2") == [53] * 2
    release(array)
    arrow.close()
    eventually(lambda: shared.pool.lent == 0)

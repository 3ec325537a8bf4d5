# SPDX-License-Identifier: MIT
"""Frames of another process as tensors: read-only where its memory was lent for reading, at every door."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dlpack_consumer import IS_COPIED, READ_ONLY, Taken
from shared_doubles import PATIENCE_S, eventually, the_consumer
from xdp_doubles import RecordingQueue

from pagepool import SharedPool
from pagepool.errors import DeadPageError
from pagepool.integrations.arrow import to_arrow
from pagepool.shared import AttachedQueue, BorrowedPage

V1 = (1, 0)


class Interface:
    """What has an array interface and nothing else."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


@pytest.mark.parametrize("first", ["consumer", "tensors"])
def test_frames_that_tensors_and_arrow_look_at_are_lent_all_the_same(
    shared: SharedPool, queue: AttachedQueue, first: str
) -> None:
    """What the lender looks at beside them comes home when it and the consumer have both let go, in either order."""
    texts = [b"%d" % number * 40 for number in range(8)]
    lender = RecordingQueue(shared.pool)
    batch = lender.batch(texts)
    tensor = np.from_dlpack(batch[0])
    arrow = to_arrow(batch, slice(2, 4), shared=True)
    batch.redirect(the_consumer(shared))
    batch.complete()
    assert (lender.xdp_stats.redirect, lender.xdp_stats.redirect_dropped) == (8, 0)
    assert shared.stats().rejected == 0
    shared.check()
    with poll(queue) as borrowed:
        assert [bytes(borrowed.frame(row)) for row in range(8)] == texts
        if first == "tensors":
            arrow.close()
            del tensor
            assert shared.pool.lent == 8
    if first == "consumer":
        eventually(lambda: shared.reap() or shared.pool.lent == 3)
        ids = np.array([int(batch.ids[0])], np.uint32)
        assert shared.send(ids, 40) == 0  # what only a tensor holds is nobody's to lend
        assert tensor.tobytes() == texts[0]
        arrow.close()
        del tensor
    eventually(lambda: shared.reap() or shared.pool.lent == 0)


def poll(queue: AttachedQueue) -> Any:
    for batch in queue.poll_forever(64, timeout=PATIENCE_S):
        return batch
    raise AssertionError("nothing came")


def lend(shared: SharedPool, queue: AttachedQueue, *texts: bytes) -> Any:
    for text in texts:
        page = shared.pool.alloc_pages()
        page[: len(text)] = text
        shared.send(page, len(text))
    return poll(queue)


def test_a_kept_frame_is_a_read_only_tensor(shared: SharedPool, queue: AttachedQueue) -> None:
    batch = lend(shared, queue, b"kept")
    (page,) = batch.keep()
    batch.complete()
    assert isinstance(page, BorrowedPage)
    assert page.readonly
    taken = Taken(page.__dlpack__(max_version=V1))
    assert (taken.flags, taken.data, taken.shape, taken.device) == (READ_ONLY, page.vaddr, (4,), (1, 0))
    assert page.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="max_version"):
        page.__dlpack__()
    own = Taken(page.__dlpack__(max_version=V1, copy=True))
    assert (own.flags, own.read(4)) == (IS_COPIED, b"kept")
    own.delete()
    array = np.asarray(Interface(page.__array_interface__))
    assert not array.flags.writeable
    assert array.ctypes.data == page.vaddr
    page.put()
    with pytest.raises(DeadPageError):
        page.__dlpack__()
    taken.delete()
    assert shared.pool.lent == 1
    assert array.tobytes() == b"kept"
    del array
    eventually(lambda: shared.reap() or shared.pool.lent == 0)


def test_the_rows_of_the_memory_are_read_only(shared: SharedPool, queue: AttachedQueue) -> None:
    with lend(shared, queue, b"a" * 60, b"b" * 60) as batch:
        taken = Taken(queue.memory.__dlpack__(max_version=V1))
        assert taken.flags == READ_ONLY
        assert taken.shape[1] == 4096
        taken.delete()
        assert np.asarray(batch.headers(8))[:, 0].tobytes() == b"ab"


def test_a_batch_is_gathered_or_kept_but_not_leased(shared: SharedPool, queue: AttachedQueue) -> None:
    with lend(shared, queue, b"a" * 60, b"b" * 60) as batch:
        for use in (batch.__dlpack__, batch[0].__dlpack__, batch.lease, lambda: batch.__array_interface__):
            with pytest.raises(BufferError, match="keep"):
                use()
        window = Taken(batch.headers(8).__dlpack__(max_version=V1))
        assert (window.flags, window.shape, window.read(16)) == (IS_COPIED, (2, 8), b"a" * 8 + b"b" * 8)
        window.delete()

# SPDX-License-Identifier: MIT
"""Frames and batches as tensors: without a copy where that can be, and no page is used again while one looks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from core_doubles import memory
from dlpack_consumer import IS_COPIED, Taken
from hypothesis import given, settings
from hypothesis import strategies as st
from xdp_doubles import RecordingQueue

import pagepool as pp
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.errors import ForeignPageError
from pagepool.xdp import DeadBatchError, XdpAction, XdpBatch

V1 = (1, 0)


@pytest.fixture
def pool() -> Iterator[Any]:
    with pp.PagePool(memory=memory()) as pool:
        yield pool
        pool.check()
        assert pool.lent == 0


@pytest.fixture
def queue(pool: Any) -> RecordingQueue:
    return RecordingQueue(pool)


def frames(n: int, length: int = 60) -> list[bytes]:
    return [bytes([i]) * length for i in range(n)]


def in_order(queue: RecordingQueue, n: int, *, scattered: bool = False, **how: Any) -> XdpBatch:
    """A batch whose pages ascend, as those of a device whose ring was filled so; or lie here and there."""
    pool = queue.pool
    ids = sorted(pool.alloc_bulk(n))
    if scattered:
        ids[0], ids[1] = ids[1], ids[0]
    pool.put_bulk(np.array(ids[::-1], np.uint32))
    batch = queue.batch(frames(n), **how)
    assert batch.ids.tolist() == ids
    return batch


def copied(thing: Any) -> bytes:
    """The bytes of a capsule that was asked to be a copy."""
    taken = Taken(thing.__dlpack__(max_version=V1, copy=True))
    assert taken.flags == IS_COPIED
    size = int(np.prod(taken.shape))
    content = taken.read(size) if size else b""
    taken.delete()
    return content


# -- one frame -----------------------------------------------------------------------------------------------------

DOORS: dict[str, Callable[[Any], Any]] = {
    "array interface": np.asarray,
    "dlpack": np.from_dlpack,
    "dlpack, taken": lambda buff: Taken(buff.__dlpack__(max_version=V1)),
}
if sys.version_info >= (3, 12):
    DOORS["buffer"] = memoryview


@pytest.mark.parametrize("door", DOORS)
def test_a_frame_is_held_past_the_end_of_its_batch(queue: RecordingQueue, pool: Any, door: str) -> None:
    batch = queue.batch(frames(4), offsets=[64, 0, 256, 14])
    batch.lengths[2] = 50
    held = DOORS[door](batch[2])
    if isinstance(held, Taken):
        assert (held.shape, held.read(50)) == ((50,), bytes([2]) * 50)
        assert held.data == pool.arena.base_vaddr + (int(batch.ids[2]) << 12) + 256
    else:
        assert (held.shape, bytes(held)) == ((50,), bytes([2]) * 50)
    page_id = int(batch.ids[2])
    batch.drop()
    batch.complete()
    assert pool.lent == 1
    others = [pool.alloc_pages() for _ in range(70)]
    assert page_id not in {page.id for page in others}
    del others
    if isinstance(held, Taken):
        assert held.read(50) == bytes([2]) * 50
        held.delete()
    else:
        assert bytes(held) == bytes([2]) * 50
    del held
    assert pool.lent == 0


def test_the_verdict_stands_while_a_tensor_looks(queue: RecordingQueue, pool: Any) -> None:
    other = RecordingQueue(pp.PagePool(memory=memory()), "test1")
    batch = queue.batch(frames(4))
    looks = [np.from_dlpack(batch[i]) for i in range(4)]
    np.asarray(batch[1])[0] = 99
    assert looks[1][0] == 99
    batch.tx(1)
    batch.pass_(2)
    batch.redirect(other, 3)
    batch.complete()
    assert queue.sent == [b"\x63" + b"\1" * 59]
    assert queue.passed == [b"\2" * 60]
    assert other.sent == [b"\3" * 60]
    assert pool.lent == 4
    looks.pop()
    assert pool.lent == 3
    del looks
    assert pool.lent == 0


def test_a_kept_frame_is_exported_by_its_page(queue: RecordingQueue, pool: Any) -> None:
    batch = queue.batch(frames(3))
    before = np.from_dlpack(batch[1])
    (page,) = batch.keep(1)
    for use in (batch[1].__dlpack__, lambda: batch[1].__array_interface__, batch.lease, batch.__dlpack__):
        with pytest.raises(BufferError, match="kept"):
            use()
    own = np.from_dlpack(page)
    assert own.ctypes.data == before.ctypes.data
    page.put()
    batch.complete()
    assert pool.lent == 1
    del before
    assert (pool.lent, own[0]) == (1, 1)
    del own
    assert pool.lent == 0


def test_indices_are_those_of_a_sequence(queue: RecordingQueue) -> None:
    with queue.batch(frames(3)) as batch:
        assert np.asarray(batch[-1])[0] == 2
        assert [buff.index for buff in batch] == [0, 1, 2]
        for wrong in (3, -4):
            with pytest.raises(IndexError):
                batch[wrong]
        with pytest.raises(TypeError):
            batch["x"]  # type: ignore[index]


def test_a_dead_batch_exports_nothing(queue: RecordingQueue) -> None:
    batch = queue.batch(frames(2))
    buff, headers = batch[0], batch.headers(4)
    batch.complete()
    for use in (
        buff.__dlpack__,
        lambda: buff.__array_interface__,
        lambda: memoryview(buff.__buffer__(0)),
        batch.__dlpack__,
        lambda: batch.__array_interface__,
        batch.lease,
        lambda: np.asarray(batch),
        headers.__dlpack__,
    ):
        with pytest.raises(DeadBatchError):
            use()


def test_a_length_or_offset_that_was_overwritten_is_refused(queue: RecordingQueue) -> None:
    with queue.batch(frames(2)) as batch:
        batch.lengths[0] = 5000
        for use in (batch[0].__dlpack__, lambda: batch[0].__array_interface__):
            with pytest.raises(ValueError, match="do not fit"):
                use()
        batch.lengths[:] = 5000
        with pytest.raises(ValueError, match=r"do not fit|4096 bytes"):
            batch.__dlpack__()
        with pytest.raises(ValueError, match="do not fit"):
            batch.lease()


def test_an_id_that_went_home_behind_the_batch_is_refused(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(2)) as batch:
        assert pool.put_bulk(batch.ids[:1]) == 1
        with pytest.raises(ForeignPageError, match="not lent"):
            batch[0].__dlpack__()


# -- the whole batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 256])
def test_frames_side_by_side_are_one_tensor(queue: RecordingQueue, pool: Any, offset: int) -> None:
    batch = in_order(queue, 8, offsets=offset)
    first = pool.arena.base_vaddr + (int(batch.ids[0]) << 12) + offset
    tensor, array, own = np.from_dlpack(batch), np.asarray(batch), copied(batch)
    for each in (tensor, array):
        assert (each.shape, each.strides, each.ctypes.data) == ((8, 60), (4096, 1), first)
    assert tensor.tolist() == [[i] * 60 for i in range(8)]
    array[5, 0] = 77
    assert batch.frame(5)[0] == tensor[5, 0] == 77
    assert own == b"".join(frames(8))
    batch.complete()
    assert pool.lent == 8
    del tensor
    assert pool.lent == 8
    del each, batch
    assert (pool.lent, array[5, 0]) == (8, 77)
    del array
    assert pool.lent == 0


def test_a_single_frame_and_none_are_tensors(queue: RecordingQueue) -> None:
    with queue.batch(frames(1)) as batch:
        assert np.from_dlpack(batch).shape == np.asarray(batch).shape == (1, 60)
    with queue.batch([]) as batch:
        assert np.from_dlpack(batch).size == np.asarray(batch).size == 0
    with queue.batch([b"", b""]) as batch:
        assert copied(batch) == b""


def test_frames_that_lie_backwards_are_an_array_but_no_capsule(queue: RecordingQueue) -> None:
    with queue.batch(frames(4)) as batch:
        assert np.diff(batch.ids.astype(int)).tolist() == [-1, -1, -1]
        array = np.asarray(batch)
        assert array.strides == (-4096, 1)
        assert array[:, 0].tolist() == [0, 1, 2, 3]
        with pytest.raises(BufferError, match="backwards"):
            np.from_dlpack(batch)
        del array


def test_frames_here_and_there_are_refused_with_the_way_to_gather(queue: RecordingQueue) -> None:
    with in_order(queue, 6, scattered=True) as batch:
        for use in (np.from_dlpack, np.asarray, lambda b: b.headers(8).__dlpack__(copy=False)):
            with pytest.raises(BufferError, match=r"[gG]ather"):
                use(batch)
        assert copied(batch) == b"".join(frames(6))
    with queue.batch([b"a" * 60, b"b" * 61]) as batch:
        for use in (np.from_dlpack, np.asarray, copied, lambda b: b.lease()):
            with pytest.raises(BufferError, match="60 to 61 bytes are no rectangle"):
                use(batch)
        assert np.from_dlpack(batch.headers(4))[:, 0].tobytes() == b"ab"
    with in_order(queue, 2, offsets=[0, 2]) as batch, pytest.raises(BufferError, match="start at different bytes"):
        np.from_dlpack(batch)


# -- windows -------------------------------------------------------------------------------------------------------


def test_a_window_is_the_frames_where_it_can_be(queue: RecordingQueue, pool: Any) -> None:
    batch = in_order(queue, 4, offsets=16)
    window = batch.headers(8, at=2)
    taken = Taken(window.__dlpack__(max_version=V1))
    first = pool.arena.base_vaddr + (int(batch.ids[0]) << 12) + 18
    assert (taken.shape, taken.strides, taken.data, taken.flags) == ((4, 8), (4096, 1), first, 0)
    batch.complete()
    assert pool.lent == 4
    taken.delete()
    assert pool.lent == 0


@pytest.mark.parametrize("how", ["scattered", "kept", "copy", "offsets"])
def test_a_window_is_gathered_where_it_must_be(queue: RecordingQueue, pool: Any, how: str) -> None:
    offsets: Any = [0, 8, 16, 24] if how == "offsets" else 0
    batch = in_order(queue, 4, scattered=how == "scattered", offsets=offsets)
    pages = batch.keep(3) if how == "kept" else []
    window = batch.headers(8)
    taken = Taken(window.__dlpack__(max_version=V1, copy=True if how == "copy" else None))
    assert (taken.shape, taken.strides, taken.flags) == ((4, 8), (8, 1), IS_COPIED)
    assert taken.read(32) == b"".join(bytes([i]) * 8 for i in range(4))
    if how != "copy":
        with pytest.raises(BufferError):
            window.__dlpack__(max_version=V1, copy=False)
    batch.complete()
    assert pool.lent == len(pages)
    taken.delete()


@pytest.mark.parametrize(
    ("asked", "error"),
    [({"stream": 1}, BufferError), ({"dl_device": (2, 0)}, BufferError), ({"max_version": 7}, TypeError)],
)
def test_what_cannot_be_done_is_refused(queue: RecordingQueue, pool: Any, asked: Any, error: type[Exception]) -> None:
    with in_order(queue, 4) as batch:
        for thing in (batch, batch[0], batch.headers(4), queue.memory):
            assert thing.__dlpack_device__() == (1, 0)
            with pytest.raises(error):
                thing.__dlpack__(**asked)
    assert pool.lent == 0


# -- all the pool's memory -----------------------------------------------------------------------------------------


def test_rows_by_page_are_gathered_by_ids(queue: RecordingQueue, pool: Any) -> None:
    rows = np.from_dlpack(queue.memory)
    assert rows.shape == (pool.arena.nr_added_pages, 4096)
    with in_order(queue, 6, scattered=True) as batch:
        assert rows[batch.ids, 0].tolist() == list(range(6))
        assert np.shares_memory(rows[batch.ids[3]], np.asarray(batch[3]))
    with pytest.raises(IndexError):
        rows[pool.arena.nr_pages - 1]
    own = Taken(queue.memory.__dlpack__(max_version=V1, copy=True))
    assert (own.shape, own.flags) == (rows.shape, IS_COPIED)
    assert own.data != rows.ctypes.data
    own.delete()


def test_rows_pin_their_slabs(queue: RecordingQueue) -> None:
    allocator = queue.pool.memory
    rows = np.from_dlpack(queue.memory)
    assert allocator.grow()
    seen = rows.shape[0]
    assert np.from_dlpack(queue.memory).shape[0] == seen + 512
    while allocator.shrink():
        pass
    assert int(rows[:, 0].sum()) >= 0  # each row still has memory


# -- conservation --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_verdicts_and_any_tensors(data: st.DataObject) -> None:
    pool = pp.PagePool(memory=memory(), pool_size=16)
    queue = RecordingQueue(pool)
    held: list[Any] = []
    for _ in range(data.draw(st.integers(1, 4))):
        batch = queue.batch(frames(data.draw(st.integers(1, 8))))
        out: set[int] = set()
        for _ in range(data.draw(st.integers(0, 6))):
            i = data.draw(st.integers(0, len(batch) - 1))
            what = data.draw(st.sampled_from(["frame", "batch", "window", "keep", "lease", "drop"]))
            try:
                if what == "frame":
                    held.append(np.asarray(batch[i]))
                elif what == "batch":
                    held.append(np.asarray(batch))
                elif what == "window":
                    held.append(np.from_dlpack(batch.headers(8)))
                elif what == "lease":
                    held.append(batch.lease())
                elif what == "keep":
                    held.extend(batch.keep(i))
                    out.add(i)
                elif held:
                    held.pop(data.draw(st.integers(0, len(held) - 1)))
            except BufferError:
                assert out or what in ("batch", "lease")
        batch.verdicts[:] = data.draw(
            st.lists(
                st.sampled_from([XdpAction.DROP, XdpAction.TX, XdpAction.PASS]),
                min_size=len(batch),
                max_size=len(batch),
            )
        )
        batch.complete()
        del batch
        pool.check()
    if data.draw(st.booleans()):
        pool.close()
    threads = [threading.Thread(target=held[k::3].clear) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held.clear()
    assert pool.lent == 0
    pool.check()


def test_tensors_of_a_running_queue_starve_it_and_feed_it_again() -> None:
    queue = LoopbackQueue(UdpFlows(count=100_000))
    held: list[Any] = []
    for _ in range(5):
        batch = queue.poll(64)
        held += [np.from_dlpack(batch[i]) for i in range(len(batch))]
        seen = [bytes(array) for array in held]
        batch.drop()
    assert len(held) > 64
    assert [bytes(array) for array in held] == seen
    held.clear()
    assert len(queue.poll(64)) > 0
    last = np.from_dlpack(queue.poll(64)[0])
    shown = bytes(last)
    pool = queue.pool
    queue.close()
    assert bytes(last) == shown
    assert pool.lent == 1
    del last
    assert pool.lent == 0

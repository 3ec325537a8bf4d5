# SPDX-License-Identifier: MIT
"""Batches: every frame finds exactly one place, whatever the verdicts, the rooms and the accidents."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdp_doubles import RecordingQueue

import pagepool as pp
from pagepool.dma.host import HostDevice
from pagepool.errors import NotMappedError
from pagepool.memory import PageAllocator
from pagepool.xdp import DeadBatchError, XdpAction, XdpBatch, XdpFrame, per_frame


@pytest.fixture
def pool() -> Iterator[Any]:
    with pp.PagePool() as pool:
        yield pool
        pool.check()
        assert pool.lent == 0


@pytest.fixture
def queue(pool: Any) -> RecordingQueue:
    return RecordingQueue(pool)


def frames(n: int) -> list[bytes]:
    return [bytes([i]) * 60 for i in range(n)]


def test_the_kernel_numbers() -> None:
    assert [XdpAction(n).name for n in range(5)] == ["ABORTED", "DROP", "PASS", "TX", "REDIRECT"]
    assert min(XdpAction.KEEP, XdpAction.NONE) > 4


def test_a_frame_without_verdict_goes_home(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(8)) as batch:
        assert batch.verdicts.tolist() == [XdpAction.NONE] * 8
        assert pool.lent == 8
    assert pool.lent == 0
    assert queue.xdp_stats.none == 8


def test_drop_all_never_makes_a_verdict_array(queue: RecordingQueue, pool: Any) -> None:
    batch = queue.batch(frames(64))
    batch.drop()
    batch.complete()
    assert batch._verdicts is None
    assert (pool.lent, queue.xdp_stats.drop) == (0, 64)


@pytest.mark.parametrize(
    "mask",
    [
        np.array([0, 1, 0, 1], bool),
        np.array([1, 3]),
        slice(1, None, 2),
        [False, True, False, True],
        [1, 3],
        [-3, -1],
    ],
)
def test_a_mask_is_any_index(queue: RecordingQueue, mask: Any) -> None:
    with queue.batch(frames(4)) as batch:
        batch.tx(mask)
    assert queue.sent == [frames(4)[1], frames(4)[3]]


def test_one_index_and_all(queue: RecordingQueue) -> None:
    with queue.batch(frames(3)) as batch:
        batch.tx()
        batch.pass_(1)
    assert queue.passed == [frames(3)[1]]
    assert queue.sent == [frames(3)[0], frames(3)[2]]


def test_a_bad_mask_changes_nothing(queue: RecordingQueue) -> None:
    other = RecordingQueue(queue.pool)
    with queue.batch(frames(3)) as batch:
        batch.drop()
        for verb in (batch.tx, batch.pass_, batch.keep, lambda mask: batch.redirect(other, mask)):
            with pytest.raises(IndexError):
                verb([0, 7])
            with pytest.raises(IndexError):
                verb(np.ones(4, bool))
        assert batch.verdicts.tolist() == [XdpAction.DROP] * 3
        with pytest.raises(TypeError, match="xdp_xmit"):
            batch.redirect(object())  # type: ignore[arg-type]


def test_a_later_verdict_replaces_an_earlier_one(queue: RecordingQueue) -> None:
    other = RecordingQueue(queue.pool)
    with queue.batch(frames(2)) as batch:
        batch.redirect(other)
        batch.tx()
        batch.drop([1])
    assert (other.sent, queue.sent, queue.xdp_stats.drop) == ([], [frames(2)[0]], 1)


def test_redirect_to_several_queues(queue: RecordingQueue, pool: Any) -> None:
    left, right = RecordingQueue(pool, "left"), RecordingQueue(pool, "right", room=1)
    with queue.batch(frames(6)) as batch:
        batch.redirect(left, [0, 2])
        batch.redirect(right, [1, 3])
        batch.redirect(left, [4])
        batch.verdicts[5] = XdpAction.REDIRECT  # to nowhere
    assert [f[0] for f in left.sent] == [0, 2, 4]
    assert [f[0] for f in right.sent] == [1]
    stats = queue.xdp_stats
    assert (stats.redirect, stats.redirect_dropped, stats.aborted) == (5, 1, 1)


def test_no_room_is_counted_and_recycled(queue: RecordingQueue, pool: Any) -> None:
    queue.room = 3
    with queue.batch(frames(5)) as batch:
        batch.tx()
    assert (len(queue.sent), queue.xdp_stats.tx, queue.xdp_stats.tx_dropped, pool.lent) == (3, 5, 2, 0)


def test_a_raising_driver_loses_nothing(queue: RecordingQueue, pool: Any) -> None:
    other = RecordingQueue(pool)
    batch = queue.batch(frames(4))
    queue.fail = OSError("link is down")
    batch.tx([0])
    batch.redirect(other, [1, 2])
    with pytest.raises(OSError, match="link is down"):
        batch.complete()
    assert batch.completed
    assert len(other.sent) == 2
    assert (queue.xdp_stats.tx_dropped, pool.lent) == (1, 0)


def test_keep_hands_out_pages(queue: RecordingQueue, pool: Any) -> None:
    batch = queue.batch(frames(4), offsets=256)
    pages = batch.keep([2, 0])
    assert [bytes(page) for page in pages] == [frames(4)[0], frames(4)[2]]
    assert batch.keep([0]) == []
    batch.tx()  # a kept frame stays kept
    batch.complete()
    assert [f[0] for f in queue.sent] == [1, 3]
    assert (queue.xdp_stats.keep, pool.lent) == (2, 2)
    view = memoryview(pages.pop())
    del pages
    gc.collect()
    assert bytes(view) == frames(4)[2]
    assert pool.lent == 1
    view.release()
    gc.collect()
    assert pool.lent == 0


def test_keep_by_hand_is_aborted(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(2)) as batch:
        batch.verdicts[:] = [XdpAction.KEEP, 77]
    assert (queue.xdp_stats.aborted, queue.xdp_stats.keep, pool.lent) == (2, 0, 0)


def test_a_completed_batch_is_dead_in_words(queue: RecordingQueue) -> None:
    batch = queue.batch(frames(2))
    headers = batch.headers(14)
    batch.complete()
    batch.complete()
    for use in (
        batch.drop,
        batch.keep,
        lambda: batch.headers(14),
        lambda: batch.frame(0),
        lambda: headers[:, 0],
        lambda: headers[0],
        lambda: headers.field(0, ">u2"),
        lambda: next(batch.buffs()),
        lambda: batch.adjust_head(1),
        lambda: batch.redirect(queue),
    ):
        with pytest.raises(DeadBatchError, match="completed"):
            use()
    with pytest.raises(DeadBatchError):
        headers[:, 0] = 1
    assert "completed" in repr(batch)


def test_a_dying_batch_completes(queue: RecordingQueue, pool: Any) -> None:
    batch = queue.batch(frames(3))
    batch.tx([1])
    del batch
    gc.collect()
    assert (queue.sent, pool.lent) == ([frames(3)[1]], 0)


def test_a_view_outlives_its_batch_and_pool(pool: Any) -> None:
    memory = PageAllocator(size_bytes=16 << 20)
    own = pp.PagePool(memory=memory)
    queue = RecordingQueue(own)
    batch = queue.batch(frames(2))
    row, view = batch.headers(14)[1], batch.frame(1)
    batch.complete()
    own.close()
    del batch, queue, own
    gc.collect()
    memory.shrink()
    memory.close()
    del memory
    gc.collect()
    assert row[0] in range(256)
    assert view[0] in range(256)


def test_a_verdict_may_be_written_by_hand(queue: RecordingQueue) -> None:
    with queue.batch(frames(4)) as batch:
        batch.verdicts[:] = np.where(np.arange(4) % 2, XdpAction.TX, XdpAction.DROP)
    assert [f[0] for f in queue.sent] == [1, 3]
    assert queue.xdp_stats.drop == 2


def test_ids_cannot_be_overwritten(queue: RecordingQueue) -> None:
    with queue.batch(frames(1)) as batch, pytest.raises(ValueError, match="read-only"):
        batch.ids[0] = 5


def test_a_frame_that_left_its_page_is_aborted(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(3)) as batch:
        batch.lengths[1] = 0xFFFFFFFF
        batch.tx()
        with pytest.raises(ValueError, match="page"):
            batch.frame(1)
        with pytest.raises(ValueError, match="page"):
            batch.keep(1)
    assert (len(queue.sent), queue.xdp_stats.aborted, pool.lent) == (2, 1, 0)


def test_adjust_head_and_tail(queue: RecordingQueue) -> None:
    with queue.batch([bytes(range(40))] * 3, offsets=64) as batch:
        batch.adjust_head(14, [0])
        batch.adjust_head(-50, [1])
        batch.adjust_tail(-12, [0])
        batch.adjust_tail(-26, [2])
        batch.frame(1)[:50] = b"T" * 50
        with pytest.raises(ValueError, match="Ethernet"):
            batch.adjust_head(1, [2])
        with pytest.raises(ValueError, match="page"):
            batch.adjust_head(-15, [0, 1])
        with pytest.raises(ValueError, match="page"):
            batch.adjust_tail(5000)
        batch.tx()
    assert queue.sent == [bytes(range(14, 28)), b"T" * 50 + bytes(range(40)), bytes(range(14))]


def test_dma_addr_is_of_the_first_byte(queue: RecordingQueue) -> None:
    with queue.batch(frames(1)) as batch, pytest.raises(NotMappedError):
        _ = batch.dma_addr
    flags = pp.PPFlag.DMA_MAP
    with (
        pp.PagePool(flags=flags, dev=HostDevice()) as mapped,
        RecordingQueue(mapped).batch(frames(2), [0, 256]) as batch,
    ):
        expected = [mapped.dma_addr(int(i)) + o for i, o in zip(batch.ids, (0, 256), strict=True)]
        assert batch.dma_addr.tolist() == expected


def test_buffs_and_frames(queue: RecordingQueue, pool: Any) -> None:
    queue.rxq.reg("test0", 0)
    taken: list[XdpFrame] = []

    def program(buff: Any) -> XdpAction:
        assert buff.data[0] == buff.index
        assert (buff.data_len, buff.headroom, buff.rxq) == (60, 256, queue.rxq)
        if buff.index == 0:
            taken.append(buff.to_frame())
            return XdpAction.KEEP
        if buff.index == 1:
            buff.adjust_head(14)
            return XdpAction.TX
        return buff.redirect(other) if buff.index == 2 else XdpAction.PASS

    other = RecordingQueue(pool)
    per_frame(program)(queue.batch(frames(5), offsets=256))
    assert (len(queue.sent[0]), other.sent, len(queue.passed)) == (46, [frames(5)[2]], 2)
    frame = taken.pop()
    assert (len(frame), bytes(frame.data), frame.rxq) == (60, frames(1)[0], queue.rxq)
    frame.return_frame()
    with pytest.raises(ValueError, match="returned"):
        frame.return_frame()
    assert pool.lent == 0


def test_per_frame_survives_its_function(queue: RecordingQueue, pool: Any) -> None:
    def program(buff: Any) -> Any:
        if buff.index in (1, 2):
            raise KeyError(buff.index)
        return 99 if buff.index == 3 else XdpAction.TX

    batch = queue.batch(frames(5))
    with pytest.raises(KeyError) as caught:
        per_frame(program)(batch)
    assert caught.value.args == (1,)
    assert "1 more" in caught.value.__notes__[0]
    stats = queue.xdp_stats
    assert (batch.completed, stats.tx, stats.aborted, stats.handler_errors, pool.lent) == (True, 2, 3, 2, 0)


def test_per_frame_stops_at_ctrl_c(queue: RecordingQueue, pool: Any) -> None:
    def program(buff: Any) -> XdpAction:
        if buff.index == 2:
            raise KeyboardInterrupt
        return XdpAction.TX

    with pytest.raises(KeyboardInterrupt):
        per_frame(program)(queue.batch(frames(5)))
    assert (queue.xdp_stats.tx, queue.xdp_stats.none, pool.lent) == (2, 3, 0)


def test_an_empty_batch(queue: RecordingQueue) -> None:
    with queue.batch([]) as batch:
        batch.tx()
        batch.pass_([])
        assert len(batch.headers(14)[:, 0]) == 0
        assert batch.keep() == []
    assert queue.xdp_stats.rx_frames == 0


verbs = st.lists(
    st.tuples(
        st.sampled_from(["drop", "tx", "pass_", "left", "right", "keep", "hand"]),
        st.one_of(st.none(), st.lists(st.booleans(), min_size=12, max_size=12)),
        st.integers(0, 255),
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(steps=verbs, room=st.integers(0, 12))
def test_verdicts_equal_a_plain_model(steps: list[tuple[str, list[bool] | None, int]], room: int) -> None:
    with pp.PagePool() as pool:
        queue = RecordingQueue(pool, room=room)
        rooms = {"left": RecordingQueue(pool, "left"), "right": RecordingQueue(pool, "right", room=2)}
        batch: XdpBatch = queue.batch(frames(12))
        fate: list[Any] = ["none"] * 12
        target: list[str | None] = [None] * 12
        kept: dict[int, Any] = {}
        for verb, mask, value in steps:
            array = None if mask is None else np.array(mask)
            chosen = [i for i in range(12) if mask is None or mask[i]]
            if verb in rooms:
                batch.redirect(rooms[verb], array)
                for i in chosen:
                    target[i] = verb
                fate_of: Any = "redirect"
            elif verb == "hand":
                batch.verdicts[chosen] = value
                fate_of = {0: "aborted", 1: "drop", 2: "pass_", 3: "tx", 4: "redirect", 255: "none"}.get(
                    value, "aborted"
                )
            elif verb == "keep":
                fresh = [i for i in chosen if i not in kept]
                kept.update(zip(fresh, batch.keep(array), strict=True))
                continue
            else:
                getattr(batch, verb)(array)
                fate_of = verb
            for i in chosen:
                fate[i] = fate_of
        for i in kept:
            fate[i] = "keep"
        batch.complete()
        pool.check()
        assert pool.lent == len(kept)

        def those(what: str, where: str | None = None) -> list[int]:
            return [i for i in range(12) if fate[i] == what and (where is None or target[i] == where)]

        assert [f[0] for f in queue.sent] == those("tx")[:room]
        assert [f[0] for f in queue.passed] == those("pass_")[:room]
        assert [f[0] for f in rooms["left"].sent] == those("redirect", "left")
        assert [f[0] for f in rooms["right"].sent] == those("redirect", "right")[:2]
        assert {i: bytes(page)[0] for i, page in kept.items()} == {i: i for i in kept}
        stats = queue.xdp_stats
        assert stats.drop == len(those("drop"))
        assert stats.none == len(those("none"))
        assert stats.keep == len(kept)
        nowhere = sum(fate[i] == "redirect" and target[i] is None for i in range(12))
        assert stats.aborted == len(those("aborted")) + nowhere
        judged = stats.aborted + stats.drop + stats.passed + stats.tx + stats.redirect + stats.keep + stats.none
        assert judged == stats.rx_frames == 12
        for page in kept.values():
            page.put()
        assert pool.lent == 0

# SPDX-License-Identifier: MIT
"""Frames as Arrow arrays, read by the C interface itself: what is in them, where it lies, and who owns the pages."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arrow_doubles import Array, Schema, Stream, buffers, in_capsule, moved, payloads, release, taken
from hypothesis import given, settings
from hypothesis import strategies as st
from xdp_doubles import RecordingQueue

import pagepool as pp
from pagepool.dma.host import HostDevice
from pagepool.errors import DeadPageError, ForeignPageError
from pagepool.integrations.arrow import ALL_COLUMNS, COLUMNS, FIVE_TUPLE, METADATA, ArrowBatch, to_arrow
from pagepool.integrations.arrow import _c_data as c_data
from pagepool.integrations.arrow._holding import Holding
from pagepool.memory import PageAllocator
from pagepool.xdp import DeadBatchError


@pytest.fixture
def pool() -> Iterator[Any]:
    with pp.PagePool() as pool:
        yield pool
        gc.collect()
        pool.check()
        assert pool.lent == 0


@pytest.fixture
def queue(pool: Any) -> RecordingQueue:
    return RecordingQueue(pool)


def frames(n: int, size_bytes: int = 60) -> list[bytes]:
    return [bytes([i % 256]) * size_bytes for i in range(n)]


def exported(batch: ArrowBatch) -> Array:
    """Move the array out of its capsule; whoever calls releases it."""
    return taken(batch.__arrow_c_array__()[1], Array)


def column(array: Array, batch: ArrowBatch, name: str) -> Array:
    return array.children[batch.columns.index(name)].contents


def numbers(child: Array, dtype: str) -> list[int]:
    at = buffers(child)[1]
    size = child.length * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(at, size), dtype).tolist()


def valid(child: Array) -> list[bool]:
    if not buffers(child)[0]:
        return [True] * child.length
    bits = np.frombuffer(ctypes.string_at(buffers(child)[0], (child.length + 7) // 8), np.uint8)
    return np.unpackbits(bits, bitorder="little", count=child.length).astype(bool).tolist()


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_the_payload_is_the_memory_of_the_pages(queue: RecordingQueue, pool: Any) -> None:
    sent = frames(8)
    with queue.batch(sent, offsets=256) as batch:
        ids = batch.ids.tolist()
        arrow = to_arrow(batch, columns=["payload"])
        array = exported(arrow)
        child = column(array, arrow, "payload")
        assert buffers(child)[2:-1] == [pool.arena.base_vaddr + (i << 12) + 256 for i in ids]
        assert payloads(child) == sent
        release(array)
        del arrow


def test_no_buffer_shows_more_than_a_frame(queue: RecordingQueue) -> None:
    with queue.batch([b"x" * 13, b"y" * 4096, b"", b"z" * 12]) as batch:
        arrow = to_arrow(batch, columns=["payload"])
        array = exported(arrow)
        child = column(array, arrow, "payload")
        assert child.n_buffers == 2 + 4 + 1
        sizes = (ctypes.c_int64 * 4).from_address(buffers(child)[-1])
        assert list(sizes) == [13, 4096, 0, 12]
        release(array)
        del arrow


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 4096)), max_size=20))
def test_frames_of_any_length_at_any_offset(places: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(len(places))
    offsets = [min(offset, 4096 - length) for offset, length in places]
    sent = [rng.bytes(length) for _, length in places]
    with pp.PagePool() as pool:
        with RecordingQueue(pool).batch(sent, offsets) as batch:
            arrow = to_arrow(batch, columns=ALL_COLUMNS)
            array = exported(arrow)
            assert payloads(column(array, arrow, "payload")) == sent
            assert numbers(column(array, arrow, "length"), "u4") == [len(frame) for frame in sent]
            release(array)
            del arrow
        assert pool.lent == 0


def test_metadata(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(3)) as batch:
        ids = batch.ids.tolist()
        arrow = to_arrow(batch, columns=ALL_COLUMNS, timestamp_ns=1_700_000_000_123_456_789)
        array = exported(arrow)
        assert array.length == len(arrow) == 3
        assert numbers(column(array, arrow, "timestamp"), "i8") == [1_700_000_000_123_456] * 3
        assert numbers(column(array, arrow, "queue"), "u2") == [0] * 3
        assert numbers(column(array, arrow, "page"), "u4") == ids
        assert payloads(column(array, arrow, "interface")) == [b"test0"] * 3
        release(array)
        del arrow


def test_the_schema_says_types_and_nulls() -> None:
    with pp.PagePool() as pool, RecordingQueue(pool).batch(frames(1)) as batch:
        capsule = to_arrow(batch, columns=ALL_COLUMNS).__arrow_c_schema__()
        schema = in_capsule(capsule, Schema)
        assert schema.format == b"+s"
        children = [schema.children[i].contents for i in range(schema.n_children)]
        said = {child.name.decode(): (child.format.decode(), bool(child.flags & 2)) for child in children}
        assert said == {name: (kind.format, kind.nullable) for name, kind in COLUMNS.items()}
        assert said["payload"] == ("vz", False)


def test_a_mask_takes_some_frames_and_leaves_the_others(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(6)) as batch:
        kept = batch.keep(5)
        arrow = to_arrow(batch, [1, 3, 5], columns=["payload"])
        array = exported(arrow)
        assert [data[:1] for data in payloads(array.children[0].contents)] == [b"\1", b"\3"]
        batch.drop()
        batch.complete()
        assert pool.lent == 3
        assert queue.xdp_stats.keep == 3
        assert queue.xdp_stats.drop == 3
        release(array)
    del arrow, kept


def test_without_a_payload_the_frames_stay_in_the_batch(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch, columns=["length", "page"])
        batch.tx()
    assert (pool.lent, len(queue.sent)) == (0, 4)
    array = exported(arrow)
    assert numbers(column(array, arrow, "length"), "u4") == [60] * 4
    release(array)


def test_an_empty_batch(queue: RecordingQueue) -> None:
    with queue.batch(frames(2)) as batch:
        arrow = to_arrow(batch, [], columns=ALL_COLUMNS)
        array = exported(arrow)
        assert (array.length, len(arrow)) == (0, 0)
        assert payloads(column(array, arrow, "payload")) == []
        release(array)
        assert len(to_arrow([], columns=ALL_COLUMNS)) == 0
        assert len(to_arrow(batch, [], columns=["page"])) == 0


@pytest.mark.parametrize("columns", [["nonsense"], [], ["length", "length"]])
def test_columns_that_are_none(queue: RecordingQueue, columns: list[str]) -> None:
    with queue.batch(frames(1)) as batch, pytest.raises(ValueError, match="column"):
        to_arrow(batch, columns=columns)


# -- who owns the pages ------------------------------------------------------------------------------------------------


def test_pages_come_home_with_the_last_reference_of_several_consumers(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(64)) as batch:
        arrow = to_arrow(batch)
    assert pool.lent == 64
    first, second = exported(arrow), exported(arrow)
    del arrow
    release(first)
    assert pool.lent == 64
    release(second)
    assert pool.lent == 0


def test_a_child_that_was_moved_out_keeps_the_pages(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch, columns=["length", "payload"])
    array = exported(arrow)
    del arrow
    payload = moved(array.children[1].contents)
    release(array)
    assert pool.lent == 4
    assert payloads(payload) == frames(4)
    release(payload)
    assert pool.lent == 0


def test_a_second_release_does_nothing(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch)
    array = exported(arrow)
    callback = array.release
    again = type(callback)(ctypes.cast(callback, ctypes.c_void_p).value)
    release(array)
    assert not array.release
    again(ctypes.byref(array))
    assert pool.lent == 4
    del arrow
    assert pool.lent == 0


def test_a_capsule_that_nobody_consumes_releases_itself(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch)
    capsules = [arrow.__arrow_c_array__(), arrow.__arrow_c_stream__(), arrow.__arrow_c_schema__()]
    arrow.close()
    assert pool.lent == 4
    del capsules
    assert pool.lent == 0


def test_a_closed_batch_says_so(queue: RecordingQueue) -> None:
    with queue.batch(frames(1)) as batch:
        arrow = to_arrow(batch)
        with arrow:
            assert "closed" not in repr(arrow)
        assert "closed" in repr(arrow)
        with pytest.raises(ValueError, match="closed"):
            arrow.__arrow_c_array__()
        with pytest.raises(ValueError, match="closed"):
            arrow.__arrow_c_stream__()


def test_many_threads_release_at_once(pool: Any) -> None:
    # ctypes lets go of the GIL around a release callback, so these really run beside each other.
    queue = RecordingQueue(pool)
    for _ in range(20):
        arrays = []
        for _ in range(8):
            with queue.batch(frames(32)) as batch:
                arrow = to_arrow(batch)
            arrays += [exported(arrow) for _ in range(4)]
            del arrow
        start = threading.Barrier(4)

        def drop(mine: list[Array], start: threading.Barrier = start) -> None:
            start.wait()
            for array in mine:
                release(array)

        threads = [threading.Thread(target=drop, args=(arrays[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.lent == 0
        pool.check()


def test_frames_stay_with_the_batch_if_the_export_fails(
    queue: RecordingQueue, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pagepool.integrations.arrow import record_batch

    class NoMemory:
        def __init__(self, *args: Any) -> None:
            raise MemoryError("none")

    with queue.batch(frames(8)) as batch:
        with monkeypatch.context() as patch:
            patch.setattr(record_batch, "Holding", NoMemory)
            with pytest.raises(MemoryError):
                to_arrow(batch)
        with pytest.raises(IndexError):
            to_arrow(batch, [99])
        assert len(batch.chosen()) == 8
        batch.tx()
    assert queue.sent == frames(8)


def test_pages_go_home_if_packing_fails(queue: RecordingQueue, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagepool.integrations.arrow.packing import Packing

    def fail(self: Packing, holding: Holding) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Packing, "write", fail)
    with queue.batch(frames(8)) as batch, pytest.raises(KeyboardInterrupt):
        to_arrow(batch)
    gc.collect()
    assert pool.lent == 0


def test_buffers_that_are_none_are_refused_and_nothing_leaks(pool: Any) -> None:
    holding = Holding(pool, pool.alloc_bulk(3), 64)
    for column in ((0, "text"), (0,), None, ("x", bytes(16))):
        with pytest.raises((TypeError, ValueError)):
            c_data.array_capsule(holding, 3, [(0, bytes(16)), column])
    for wrong in (None, 1):
        with pytest.raises(TypeError):
            c_data.array_capsule(wrong, 3, [])
    assert holding.refcount == 1


def test_a_dead_batch_is_refused(queue: RecordingQueue) -> None:
    batch = queue.batch(frames(1))
    batch.complete()
    with pytest.raises(DeadBatchError):
        to_arrow(batch)


def test_a_frame_that_leaves_its_page_is_refused(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(2)) as batch:
        batch.lengths[1] = 5000
        with pytest.raises(ValueError, match="does not lie in its page"):
            to_arrow(batch)
        assert len(to_arrow(batch, [0])) == 1


# -- kept pages, shared pages ------------------------------------------------------------------------------------------


def test_kept_pages_are_held_beside_their_handles(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4), offsets=128) as batch:
        pages = batch.keep()
    arrow = to_arrow(pages, [0, 2], columns=["queue", "page", "payload"])
    array = exported(arrow)
    assert payloads(column(array, arrow, "payload")) == [frames(4)[0], frames(4)[2]]
    assert valid(column(array, arrow, "queue")) == [False, False]
    for page in pages:
        page.put()
    assert pool.lent == 2
    assert payloads(column(array, arrow, "payload")) == [frames(4)[0], frames(4)[2]]
    del arrow
    threading.Thread(target=release, args=(array,)).start()
    for _ in range(1000):
        if pool.lent == 0:
            break
        threading.Event().wait(0.01)
    assert pool.lent == 0


def test_pages_that_were_put_are_refused(queue: RecordingQueue) -> None:
    with queue.batch(frames(2)) as batch:
        pages = batch.keep()
    pages[1].put()
    with pytest.raises(DeadPageError):
        to_arrow(pages)


def test_pages_of_several_arenas_are_one_batch() -> None:
    with PageAllocator(size_bytes=4 << 20) as memory, pp.PagePool(memory=memory) as one, pp.PagePool() as other:
        pages = [one.alloc_pages(), other.alloc_pages(), other.alloc_frag(128), one.alloc_pages()]
        for number, page in enumerate(pages):
            memoryview(page)[:] = bytes([number]) * len(page)
        arrow = to_arrow(pages, columns=["payload", "ethertype"])
        array = exported(arrow)
        arrow.close()
        assert payloads(array.children[0].contents) == [bytes([i]) * n for i, n in enumerate((4096, 4096, 128, 4096))]
        release(array)
        pages.clear()
        del page


def test_shared_frames_keep_their_verdict(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch, shared=True, columns=["payload"])
        batch.tx()
    assert queue.sent == frames(4)
    assert pool.lent == 4
    array = exported(arrow)
    del arrow
    assert payloads(array.children[0].contents) == frames(4)
    release(array)
    assert pool.lent == 0
    assert pool.stats().rejected == 0


def test_shared_frames_outlived_by_their_batch(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch, shared=True)
        del arrow
        gc.collect()
        assert pool.lent == 4
    assert pool.lent == 0


def test_what_is_not_lent_cannot_be_shared(pool: Any) -> None:
    ids = pool.alloc_bulk(4)
    pool.put_bulk(ids[3:])
    with pytest.raises(ForeignPageError):
        Holding(pool, ids, 0, True)
    assert pool.put_bulk(ids[:3]) == 3


# -- pools that end, and memory that shrinks ---------------------------------------------------------------------------


def test_a_closed_pool_stays_good_memory_until_the_last_reference() -> None:
    pool = pp.PagePool(memory=PageAllocator(size_bytes=8 << 20))
    memory, gone = pool.memory, weakref.ref(pool)
    sent = [bytes([i]) * 4096 for i in range(64)]
    with RecordingQueue(pool).batch(sent) as batch:
        arrow = to_arrow(batch, columns=["payload"])
    array = exported(arrow)
    pool.close()
    memory.shrink()
    memory.close()
    del arrow, batch, pool
    gc.collect()
    assert gone() is not None
    assert payloads(array.children[0].contents) == sent
    release(array)
    assert gone() is None
    assert memory.close()


def test_a_pool_is_let_go_of_when_another_thread_drops_the_last_page() -> None:
    pool = pp.PagePool()
    gone = weakref.ref(pool)
    with RecordingQueue(pool).batch(frames(4)) as batch:
        array = exported(to_arrow(batch))
    pool.close()
    del batch, pool
    thread = threading.Thread(target=release, args=(array,))
    thread.start()
    thread.join()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", ["ring full", "tracked", "synced"])
def test_special_pages_come_home_too(kind: str) -> None:
    class Synced(HostDevice):
        needs_sync = True

    flags = pp.PPFlag.DMA_MAP | pp.PPFlag.DMA_SYNC_DEV
    fields: dict[str, Any] = {
        "ring full": {"pool_size": 8},
        "tracked": {"track": True},
        "synced": {"flags": flags, "dev": Synced(), "max_len": 4096},
    }[kind]
    with pp.PagePool(**fields) as pool:
        with RecordingQueue(pool).batch(frames(64)) as batch:
            array = exported(to_arrow(batch))
        assert pool.lent == 64
        thread = threading.Thread(target=release, args=(array,))
        thread.start()
        thread.join()
        assert pool.lent == 0
        assert pool.holders() == []
        pool.check()


def test_any_object_with_put_bulk_is_a_home(pool: Any) -> None:
    put: list[list[int]] = []

    class Home:
        def put_bulk(self, ids: Any) -> int:
            put.append(list(ids))
            return len(ids)

    holding = Holding(Home(), np.array([3, 1, 2], np.uint32), 16)
    assert (holding.nr_ids, memoryview(holding).nbytes, holding.vaddr % 64) == (3, 16, 0)
    del holding
    assert put == [[3, 1, 2]]


def test_bad_homes_and_ids_are_refused(pool: Any) -> None:
    with pytest.raises(TypeError, match="cannot be put to"):
        Holding(object(), np.zeros(1, np.uint32))
    with pytest.raises(TypeError, match="cannot be shared with"):
        Holding(object(), np.zeros(1, np.uint32), 0, True)
    with pytest.raises(TypeError, match="uint32"):
        Holding(pool, np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="negative"):
        Holding(pool, np.zeros(0, np.uint32), -1)
    with pytest.raises(MemoryError):
        Holding(pool, np.zeros(0, np.uint32), 1 << 60)
    with pytest.raises(ValueError, match="more than there are pages"):
        Holding(pool, np.zeros(1 << 30, np.uint32))  # 4 GiB that nobody touches
    with pytest.raises(TypeError, match="pickle"):
        __import__("pickle").dumps(Holding(pool, np.zeros(0, np.uint32)))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_home_that_raises_is_reported_and_breaks_nothing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Home:
        def put_bulk(self, ids: Any) -> int:
            raise RuntimeError("no")

    holding = Holding(Home(), np.zeros(1, np.uint32))
    del holding
    assert len(seen) == 1
    assert str(seen[0].exc_value) == "no"


# -- the stream of one batch, and the end of the interpreter -----------------------------------------------------------


def test_a_batch_as_a_stream(queue: RecordingQueue, pool: Any) -> None:
    with queue.batch(frames(4)) as batch:
        arrow = to_arrow(batch, columns=["payload"])
        stream = taken(arrow.__arrow_c_stream__(), Stream)
        del arrow
        schema, first, end = Schema(), Array(), Array()
        assert stream.get_schema(ctypes.byref(stream), ctypes.byref(schema)) == 0
        assert schema.n_children == 1
        assert stream.get_next(ctypes.byref(stream), ctypes.byref(first)) == 0
        assert payloads(first.children[0].contents) == frames(4)
        assert stream.get_next(ctypes.byref(stream), ctypes.byref(end)) == 0
        assert not end.release
        assert stream.get_last_error(ctypes.byref(stream)) is None
        release(schema)
        release(stream)
        batch.complete()
        assert pool.lent == 4
        release(first)


def test_a_stream_that_fails_says_why() -> None:
    class Source:
        def __arrow_c_schema__(self) -> object:
            raise ValueError("no\0schema")

        def read_next(self) -> None:
            raise BlockingIOError(11, "not now")

    stream = taken(c_data.stream_capsule(Source()), Stream)
    schema, array = Schema(), Array()
    assert stream.get_schema(ctypes.byref(stream), ctypes.byref(schema)) == 5
    assert stream.get_last_error(ctypes.byref(stream)) == b"no?schema"
    assert stream.get_next(ctypes.byref(stream), ctypes.byref(array)) == 11
    assert stream.get_last_error(ctypes.byref(stream)) == b"[Errno 11] not now"
    release(stream)


_AT_EXIT = """
import ctypes, sys, threading, time
sys.path.insert(0, {tests!r})
from arrow_doubles import Array, release, taken
from xdp_doubles import RecordingQueue
import pagepool as pp
from pagepool.integrations.arrow import to_arrow

pool = pp.PagePool({pool})
queue = RecordingQueue(pool)
arrays = []
for _ in range(50):
    with queue.batch([b"x" * 60] * 16) as batch:
        arrays.append(taken(to_arrow(batch).__arrow_c_array__()[1], Array))
kept = arrays.pop()

# A thread of C: it sleeps and releases without ever holding the GIL, while the interpreter ends around it.
libc = ctypes.CDLL(None)
thread_t = ctypes.c_ulong()
release_t = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

def drop():
    for array in arrays:
        time.sleep(0.0005)
        release(array)

threads = [threading.Thread(target=drop, daemon=True)]
libc.pthread_create(ctypes.byref(thread_t), None, kept.release, ctypes.byref(kept))
for thread in threads:
    thread.start()
time.sleep(0.005)
"""


@pytest.mark.parametrize("fields", ["", "pool_size=1", "track=True"])
def test_the_interpreter_may_end_while_arrow_lets_go(fields: str) -> None:
    from pathlib import Path

    program = _AT_EXIT.format(tests=str(Path(__file__).parent), pool=fields)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_names() -> None:
    assert METADATA == ("timestamp", "queue", "length", "payload")
    assert set(METADATA + FIVE_TUPLE) <= set(ALL_COLUMNS) == set(COLUMNS)

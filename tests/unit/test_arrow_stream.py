# SPDX-License-Identifier: MIT
"""A queue as an Arrow stream: polled by its reader, bounded in what it lends, and clear about what it could not."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arrow_doubles import Array, Stream, payloads, release, taken

from pagepool import PagePool
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows, make_pool
from pagepool.drivers.rx_queue import QueueClosedError
from pagepool.integrations.arrow import FIVE_TUPLE, METADATA, ArrowBacklogError, ArrowBatch, arrow_stream, to_arrow
from pagepool.integrations.arrow.backlog import Backlog


@pytest.fixture
def queue() -> Iterator[LoopbackQueue]:
    with LoopbackQueue(UdpFlows(flows=4, count=1000)) as queue:
        yield queue
        gc.collect()
        queue.pool.check()


def read_all(stream: Any) -> list[ArrowBatch]:
    return list(iter(stream.read_next, None))


def test_every_frame_comes_once_and_in_order(queue: LoopbackQueue) -> None:
    stream = arrow_stream(queue, columns=["payload"])
    numbers: list[int] = []
    while (batch := stream.read_next()) is not None:
        array = taken(batch.__arrow_c_array__()[1], Array)
        numbers += [int.from_bytes(frame[42:46], "big") for frame in payloads(array.children[0].contents)]
        release(array)
        del batch
    assert numbers == list(range(1000))
    assert (stream.frames, stream.dropped) == (1000, 0)
    assert queue.xdp_stats.keep == 1000


def test_it_ends_after_so_many_frames(queue: LoopbackQueue) -> None:
    stream = arrow_stream(queue, frames=100, budget=64)
    assert [len(batch) for batch in read_all(stream)] == [64, 36]
    assert sum(map(len, read_all(arrow_stream(queue)))) == 900


def test_it_ends_after_so_many_seconds_and_when_none_comes() -> None:
    with LoopbackQueue(nic=None, source=None) as silent:
        assert arrow_stream(silent, seconds=0.01).read_next() is None
        assert arrow_stream(silent, timeout=0.01).read_next() is None
        assert arrow_stream(silent, seconds=0.0).read_next() is None


def test_where_chooses_and_the_others_get_the_verdict_it_gave(queue: LoopbackQueue) -> None:
    def flow_1(batch: Any) -> Any:
        batch.drop()
        return batch.headers(42)[:, 35] == 1  # source port 1025

    stream = arrow_stream(queue, where=flow_1)
    assert sum(map(len, read_all(stream))) == queue.xdp_stats.keep == stream.frames > 0
    assert queue.xdp_stats.keep + queue.xdp_stats.drop == 1000


def test_one_that_keeps_everything_is_told(queue: LoopbackQueue) -> None:
    stream = arrow_stream(queue, limit=128, budget=64)
    kept = [stream.read_next(), stream.read_next()]
    with pytest.raises(ArrowBacklogError, match=r"holds 128 frames .* may hold 128"):
        stream.read_next()
    kept.clear()
    assert stream.read_next() is not None


def test_or_frames_are_dropped_and_counted(queue: LoopbackQueue) -> None:
    stream = arrow_stream(queue, limit=100, budget=64, on_full="drop")
    kept = read_all(stream)
    assert sum(map(len, kept)) == stream.frames == 100
    assert stream.dropped == 900


def test_the_bound_is_of_the_pool_not_of_the_stream(queue: LoopbackQueue) -> None:
    backlog = Backlog(queue.pool, 64)
    batch = queue.poll(40)
    assert batch is not None
    held = to_arrow(batch)
    assert (backlog.held, backlog.room) == (40, 24)
    other = queue.poll(10)
    assert other is not None
    shared = to_arrow(other, shared=True)
    assert backlog.room == 14
    assert len(read_all(arrow_stream(queue, limit=64, frames=14))[0]) == 14
    held.close()
    shared.close()
    assert backlog.held == 0


def test_the_default_bound_is_half_of_the_pool() -> None:
    with PagePool(limit=100) as pool:
        assert Backlog(pool).limit == 50
    with PagePool() as pool:
        assert Backlog(pool).limit <= 1 << 16


def test_another_thread_may_read(queue: LoopbackQueue) -> None:
    stream = arrow_stream(queue)
    first = stream.read_next()
    rest: list[Any] = []
    thread = threading.Thread(target=lambda: rest.extend(read_all(stream)))
    thread.start()
    thread.join()
    assert first is not None
    assert len(first) + sum(map(len, rest)) == 1000


def test_a_consumer_of_c_reads_errors_too() -> None:
    with LoopbackQueue(UdpFlows(count=100)) as queue:
        stream = arrow_stream(queue, limit=64, budget=64)
        reader = taken(stream.__arrow_c_stream__(), Stream)
        first, second = Array(), Array()
        assert reader.get_next(ctypes.byref(reader), ctypes.byref(first)) == 0
        assert reader.get_next(ctypes.byref(reader), ctypes.byref(second)) == 105  # ENOBUFS
        assert b"Arrow holds 64 frames" in reader.get_last_error(ctypes.byref(reader))
        release(first)
        assert reader.get_next(ctypes.byref(reader), ctypes.byref(second)) == 0
        assert second.length == 36
        release(second)
        assert reader.get_next(ctypes.byref(reader), ctypes.byref(second)) == 0
        assert not second.release
    with pytest.raises(QueueClosedError):
        stream.read_next()
    release(reader)


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"limit": 0}, {"on_full": "wait"}, {"columns": ["none"]}, {"columns": []}]
)
def test_wrong_arguments(queue: LoopbackQueue, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"budget|limit|on_full|column"):
        arrow_stream(queue, **wrong)


@pytest.mark.needs_duckdb
def test_duckdb_aggregates_a_live_stream_and_lets_the_pages_go() -> None:
    import duckdb

    pool = make_pool(256)
    with pool, LoopbackQueue(UdpFlows(flows=4, count=20_000), pool=pool) as queue, duckdb.connect() as db:
        # Twenty thousand frames through a bound of 512: every batch goes home before the stream is at its end.
        db.register("packets", arrow_stream(queue, columns=METADATA + FIVE_TUPLE, limit=512, budget=128))
        rows = db.execute("select src_ip, count(*), min(length) from packets group by 1 order by 1").fetchall()
        assert [row[0] for row in rows] == [f"10.0.0.{i}" for i in range(4)]
        assert sum(row[1] for row in rows) == 20_000
        db.unregister("packets")
        queue.claim()
        gc.collect()
        assert pool.stats().high_water < 1200


@pytest.mark.needs_polars
def test_polars_reads_a_stream(queue: LoopbackQueue) -> None:
    import polars as pl

    frame = pl.DataFrame(arrow_stream(queue, columns=["length", "payload"]))
    assert frame.height == 1000
    assert frame["payload"].bin.size().sum() == frame["length"].sum()
    del frame


@pytest.mark.needs_pyarrow
def test_pyarrow_reads_a_stream_to_parquet_and_says_our_errors(queue: LoopbackQueue, tmp_path: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = arrow_stream(queue, frames=500, budget=100)
    with (
        pa.RecordBatchReader.from_stream(stream) as reader,
        pq.ParquetWriter(tmp_path / "x.parquet", reader.schema) as writer,
    ):
        for record_batch in reader:
            writer.write_batch(record_batch)
    assert pq.read_metadata(tmp_path / "x.parquet").num_rows == 500
    del record_batch
    gc.collect()
    with pytest.raises(OSError, match="Arrow holds 64 frames"):
        pa.RecordBatchReader.from_stream(arrow_stream(queue, limit=64, budget=64)).read_all()
    assert np.uint32(queue.pool.lent) >= 0

# SPDX-License-Identifier: MIT
"""Frames in pyarrow, Polars and DuckDB: without a copy, and home again when they are done."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdp_doubles import RecordingQueue

import pagepool as pp
from pagepool.integrations.arrow import ALL_COLUMNS, FIVE_TUPLE, METADATA, ArrowBatch, to_arrow
from pagepool.testing.frames import udp_frame

FRAMES = [
    udp_frame(
        src=bytes(6),
        dst=bytes(6),
        src_ip=f"10.0.{i}.100",
        dst_ip="10.255.255.255",
        src_port=1000 + i,
        dst_port=53,
        length=60 + i,
    )
    for i in range(32)
]


@pytest.fixture
def pool() -> Iterator[Any]:
    with pp.PagePool() as pool:
        yield pool
        gc.collect()
        pool.check()
        assert pool.lent == 0


@pytest.fixture
def batch(pool: Any) -> Iterator[ArrowBatch]:
    with RecordingQueue(pool).batch(FRAMES, offsets=256) as batch:
        arrow = to_arrow(batch, columns=ALL_COLUMNS)
    yield arrow
    arrow.close()


@pytest.mark.needs_pyarrow
def test_pyarrow_takes_it_as_it_is(batch: ArrowBatch, pool: Any) -> None:
    import pyarrow as pa

    record_batch = pa.record_batch(batch)
    record_batch.validate(full=True)
    assert record_batch.schema.names == list(ALL_COLUMNS)
    assert record_batch["payload"].to_pylist() == FRAMES
    assert record_batch["src_ip"].to_pylist() == [f"10.0.{i}.100" for i in range(32)]
    assert record_batch["vlan"].to_pylist() == [None] * 32
    assert pa.table(batch).num_rows == 32
    assert pa.RecordBatchReader.from_stream(batch).read_all().num_rows == 32


@pytest.mark.needs_pyarrow
def test_pyarrow_sees_the_arena_itself(batch: ArrowBatch, pool: Any) -> None:
    import pyarrow as pa

    data = pa.record_batch(batch)["payload"].buffers()[2:]
    pages = pa.record_batch(batch)["page"].to_pylist()
    assert [(buffer.address, buffer.size) for buffer in data] == [
        (pool.arena.base_vaddr + (page << 12) + 256, len(frame)) for page, frame in zip(pages, FRAMES, strict=True)
    ]


@pytest.mark.needs_pyarrow
def test_a_slice_of_pyarrow_keeps_all_pages(batch: ArrowBatch, pool: Any) -> None:
    import pyarrow as pa

    kept = pa.record_batch(batch)["payload"].slice(30)
    batch.close()
    gc.collect()
    assert pool.lent == 32
    assert kept.to_pylist() == FRAMES[30:]
    del kept
    assert pool.lent == 0


@pytest.mark.needs_pyarrow
def test_parquet_is_one_call(batch: ArrowBatch, pool: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(batch), tmp_path / "frames.parquet")
    batch.close()
    gc.collect()
    assert pool.lent == 0
    again = pq.read_table(tmp_path / "frames.parquet")
    assert [bytes(data) for data in again["payload"].to_pylist()] == FRAMES
    assert again["dst_port"].to_pylist() == [53] * 32


@pytest.mark.needs_pyarrow
def test_flight_over_loopback_carries_the_frames_and_nothing_else(batch: ArrowBatch, pool: Any) -> None:
    import pyarrow as pa
    from pyarrow import flight

    received: list[Any] = []

    class Server(flight.FlightServerBase):  # type: ignore[misc]
        def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
            received.append(reader.read_all())

        def do_get(self, context: Any, ticket: Any) -> Any:
            return flight.RecordBatchStream(pa.RecordBatchReader.from_stream(batch))

    with Server("grpc://127.0.0.1:0") as server, flight.connect(("127.0.0.1", server.port)) as client:
        record_batch = pa.record_batch(batch)
        writer, _ = client.do_put(flight.FlightDescriptor.for_path("frames"), record_batch.schema)
        with writer:
            writer.write_batch(record_batch)
        got = client.do_get(flight.Ticket(b"frames")).read_all()
        server.shutdown()
    assert got["payload"].to_pylist() == received[0]["payload"].to_pylist() == FRAMES
    # Each data buffer is a frame: a buffer over the arena would have been sent whole, other people's pages too.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record_batch.schema) as ipc:
        ipc.write_batch(record_batch)
    assert sink.getvalue().size < 4 * sum(map(len, FRAMES)) + 8192
    del record_batch, writer, client, server, Server
    batch.close()


@pytest.mark.needs_polars
def test_polars_takes_it_without_a_copy(batch: ArrowBatch, pool: Any) -> None:
    import polars as pl

    frame = pl.DataFrame(batch)
    batch.close()
    gc.collect()
    assert pool.lent == 32  # it looks at our pages: a copy would have let them go
    assert frame.height == 32
    assert frame["payload"].to_list() == FRAMES
    busy = frame.filter(pl.col("src_port") >= 1030).select("src_ip", "length")
    assert busy.rows() == [("10.0.30.100", 90), ("10.0.31.100", 91)]
    del frame, busy  # Polars holds a batch as a whole, as long as any column of it is looked at
    gc.collect()
    assert pool.lent == 0


@pytest.mark.needs_polars
def test_polars_sees_what_is_written_to_the_page(pool: Any) -> None:
    import polars as pl

    with RecordingQueue(pool).batch(FRAMES[:1]) as batch:
        view = batch.frame(0)
        frame = pl.DataFrame(to_arrow(batch, shared=True))
        view[20] = 0xAB
        assert frame["payload"][0][20] == 0xAB
        del frame
        gc.collect()


@pytest.mark.needs_duckdb
def test_duckdb_queries_frames(batch: ArrowBatch, pool: Any) -> None:
    import duckdb

    with duckdb.connect() as db:
        db.register("packets", batch)
        rows = db.execute(
            "select src_ip, sum(length), first(payload) from packets where src_port < 1002 group by 1 order by 1"
        )
        assert rows.fetchall() == [("10.0.0.100", 60, FRAMES[0]), ("10.0.1.100", 61, FRAMES[1])]
        described = dict(row[:2] for row in db.execute("describe packets").fetchall())
        assert described["payload"] == "BLOB"
        assert described["src_ip"] == "VARCHAR"
        assert described["timestamp"] == "TIMESTAMP"
        assert described["vlan"] == "USMALLINT"
        db.unregister("packets")
    batch.close()


@pytest.mark.needs_duckdb
def test_duckdb_works_on_the_pages_themselves(pool: Any) -> None:
    import duckdb

    with RecordingQueue(pool).batch(FRAMES) as batch, duckdb.connect() as db:
        views = {int(page): batch.frame(row) for row, page in enumerate(batch.ids)}
        mark = b"1st!"

        def write(page: int) -> bool:
            views[page][20:24] = mark
            return True

        db.create_function("write_to", write, ["UINTEGER"], "BOOLEAN", side_effects=True)
        with to_arrow(batch, columns=("page", "payload"), shared=True) as packets:
            db.register("packets", packets)
            # The condition runs on what the scan has made of a batch. Written there, and yet in the result: the scan
            # made no copy.
            rows = db.execute("select payload from packets where write_to(page)").fetchall()
            assert {bytes(payload[20:24]) for (payload,) in rows} == {b"1st!"}
            # What DuckDB does copy is not written to: this can be told apart.
            mark = b"2nd!"
            db.execute("create table copied as select * from packets")
            rows = db.execute("select payload from copied where write_to(page)").fetchall()
            assert {bytes(payload[20:24]) for (payload,) in rows} == {b"1st!"}
            assert {bytes(view[20:24]) for view in views.values()} == {b"2nd!"}
            db.unregister("packets")
        views.clear()


@pytest.mark.needs_duckdb
@pytest.mark.needs_polars
@pytest.mark.needs_pyarrow
def test_no_library_is_imported_by_ours() -> None:
    program = (
        "import sys, pagepool.integrations.arrow;"
        "print(sorted({'pyarrow', 'polars', 'duckdb', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_column_groups() -> None:
    assert set(METADATA + FIVE_TUPLE) <= set(ALL_COLUMNS)

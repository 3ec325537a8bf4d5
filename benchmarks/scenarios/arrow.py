# SPDX-License-Identifier: MIT
"""Frames to DuckDB: as an Arrow record batch over their pages, beside rows built in Python and inserted.

Both answer the same query with the same answer: frames and bytes for each source. The batch is received once and stays
where it is; what is timed is everything behind the poll.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.case import Case, python_loop
from benchmarks.setting import Setting
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.integrations.arrow import FIVE_TUPLE, METADATA, to_arrow
from pagepool.xdp import XdpBatch

__all__ = ["cases"]

_COLUMNS = METADATA + FIVE_TUPLE
_SIZES = (64, 256, 1024, 4096)
_INSERTED = (64, 1024)  # the others take as long for each row
_FRAME_BYTES = 100
_QUERY = "select src_ip, count(*), sum(length) from packets group by 1 order by 1"
_TABLE = """create table rows (timestamp timestamp, queue usmallint, length uinteger, payload blob, src_ip varchar,
    dst_ip varchar, proto utinyint, src_port usmallint, dst_port usmallint)"""


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows; those of DuckDB where it is installed."""
    batches = {n: _batch(stack, n) for n in _SIZES}
    rows = [
        _case(f"to_arrow {n}", partial(to_arrow, batch, columns=_COLUMNS, shared=True), "columns and references", n)
        for n, batch in batches.items()
    ]
    rows += [
        _case(f"tuples {n}", partial(_tuples, batch), "the same columns as tuples", n, f"to_arrow {n}")
        for n, batch in batches.items()
    ]
    try:
        import duckdb
    except ImportError:
        setting.notes.append("no DuckDB rows: pip install 'pagepool[sql]'")
        return rows
    database = stack.enter_context(duckdb.connect())
    database.execute(_TABLE)
    assert _query_arrow(database, batches[64]) == _query_rows(database, batches[64])
    for n, batch in batches.items():
        rows.append(_case(f"query of to_arrow {n}", partial(_query_arrow, database, batch), "DuckDB over the pages", n))
    rows += [
        _case(
            f"query of rows {n}",
            partial(_query_rows, database, batches[n]),
            "tuples, executemany, the same query",
            n,
            f"query of to_arrow {n}",
        )
        for n in _INSERTED
    ]
    return rows


def _batch(stack: ExitStack, n: int) -> XdpBatch:
    """Return a batch of `n` frames, as large as no poll of the software NIC gives it."""
    queue = stack.enter_context(LoopbackQueue(UdpFlows(flows=16, frame_bytes=_FRAME_BYTES)))
    received = queue.poll(64)
    assert received is not None
    frames = received.headers(_FRAME_BYTES)[:, :]
    received.complete()
    ids = np.array(queue.pool.alloc_bulk(n), np.uint32)
    queue.memory.rows[ids, :_FRAME_BYTES] = frames[np.arange(n) % len(frames)]
    return stack.enter_context(XdpBatch(queue, ids, np.full(n, _FRAME_BYTES, np.uint32), 0))


def _tuples(batch: XdpBatch) -> list[tuple[Any, ...]]:
    rows = []
    for i in range(len(batch)):
        frame = bytes(batch.frame(i))
        src, dst = socket.inet_ntop(socket.AF_INET, frame[26:30]), socket.inet_ntop(socket.AF_INET, frame[30:34])
        ports = struct.unpack_from(">HH", frame, 34)
        rows.append((None, 0, len(frame), frame, src, dst, frame[23], *ports))
    return rows


def _query_arrow(database: Any, batch: XdpBatch) -> Any:
    database.register("packets", to_arrow(batch, columns=_COLUMNS, shared=True))
    found = database.execute(_QUERY).fetchall()
    database.unregister("packets")
    return found


def _query_rows(database: Any, batch: XdpBatch) -> Any:
    database.execute("begin")
    database.executemany("insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?)", _tuples(batch))
    found = database.execute(_QUERY.replace("packets", "rows")).fetchall()
    database.execute("rollback")
    return found


def _case(name: str, once: Callable[[], object], what: str, n: int, against: str | None = None) -> Case:
    return Case(name, partial(_measure, once), what, pages=n, per="frame", overhead=None, against=against)


def _measure(once: Callable[[], object], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        once()
    return perf_counter_ns() - start

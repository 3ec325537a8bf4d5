# SPDX-License-Identifier: MIT
"""Frames as Arrow record batches that hold their pages, for pyarrow, Polars, DuckDB and others; none is needed here.

The Arrow C data interface and its PyCapsule protocol, written out. No query engine and no file format.
"""

from pagepool.integrations.arrow.backlog import ArrowBacklogError
from pagepool.integrations.arrow.columns import ALL_COLUMNS, COLUMNS, FIVE_TUPLE, METADATA
from pagepool.integrations.arrow.queue_stream import QueueStream, arrow_stream
from pagepool.integrations.arrow.record_batch import ArrowBatch, to_arrow

__all__ = [
    "ALL_COLUMNS",
    "COLUMNS",
    "FIVE_TUPLE",
    "METADATA",
    "ArrowBacklogError",
    "ArrowBatch",
    "QueueStream",
    "arrow_stream",
    "to_arrow",
]

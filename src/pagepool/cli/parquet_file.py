# SPDX-License-Identifier: MIT
"""``--write FILE.parquet``: every frame with what is known of it, in row groups.

A sink of `Tap`, as `CaptureFile` is. Frames are copied once, into the row group in the making, and their pages are free
again at once. Invariant: memory is bounded by one row group; what `close` has returned from is a whole file.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pagepool.cli.failure import CannotError
from pagepool.integrations.arrow import ALL_COLUMNS, to_arrow
from pagepool.xdp import XdpBatch

__all__ = ["ParquetFile"]

_GROUP_FRAMES = 1 << 16
_GROUP_BYTES = 32 << 20
_METADATA = tuple(name for name in ALL_COLUMNS if name not in ("page", "payload"))


class ParquetFile:
    """A Parquet file that several taps write to.

    Parameters
    ----------
    path : str
        Created or overwritten.

    Attributes
    ----------
    frames : int
        Written so far.

    Raises
    ------
    CannotError
        pyarrow is not installed.
    OSError
        As the file system does.
    """

    def __init__(self, path: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise CannotError(f"--write {path} needs pyarrow: pip install 'pagepool[arrow]'") from None
        self.path = path
        self.frames = 0
        self._arrow: Any = pyarrow
        self._lock = threading.Lock()
        self._group: list[Any] = []
        self._group_frames = self._group_bytes = 0
        self._schema = pyarrow.schema(
            [self._plain(field) for field in pyarrow.schema(to_arrow([], columns=(*_METADATA, "payload")))]
        )
        self._file = Path(path).open("wb")  # noqa: SIM115
        try:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)
        except BaseException:
            self._file.close()
            raise

    def interface(self, name: str) -> int:
        """Take note of a queue; nothing to do, it is a column."""
        return 0

    def write(self, interface: int, batch: XdpBatch) -> None:
        """Write the frames of a batch; they stay its own."""
        known = self._arrow.record_batch(to_arrow(batch, columns=_METADATA))  # holds no page
        frames = self._arrow.record_batch(to_arrow(batch, columns=["payload"], shared=True))
        arrays = [
            column.cast(field.type)
            for column, field in zip([*known.columns, *frames.columns], self._schema, strict=True)
        ]
        copied = self._arrow.record_batch(arrays, schema=self._schema)
        with self._lock:
            self._group.append(copied)
            self.frames += copied.num_rows
            self._group_frames += copied.num_rows
            self._group_bytes += copied.nbytes
            if self._group_frames >= _GROUP_FRAMES or self._group_bytes >= _GROUP_BYTES:
                self._write_group()

    def _plain(self, field: Any) -> Any:
        """Return a field without views: a cast copies, and any reader knows plain text and binary."""
        plain = {self._arrow.binary_view(): self._arrow.binary(), self._arrow.string_view(): self._arrow.string()}
        return field.with_type(plain.get(field.type, field.type))

    def _write_group(self) -> None:
        group, self._group = self._group, []
        self._group_frames = self._group_bytes = 0
        if group:
            table = self._arrow.Table.from_batches(group)
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def close(self) -> None:
        """Write the last row group and the footer. Idempotent."""
        if not self._file.closed:
            with self._lock:
                try:
                    self._write_group()
                    self._writer.close()
                finally:
                    self._file.close()

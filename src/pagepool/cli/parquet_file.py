# SPDX-License-Identifier: MIT
"""``--write FILE.parquet``: every frame with what is known of it, in row groups.

A sink of `Tap`, as `CaptureFile` is. Frames are copied once, into the row group in the making, and their pages are free
again at once. Invariant: memory is bounded by one row group; what stands under the name is a whole file, the former one
until `close` has written the new one's index, which Parquet has at the end.
"""

from __future__ import annotations

import threading
from typing import Any

from pagepool.cli.beside import FileBeside
from pagepool.cli.failure import CannotError, cannot_write
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
        Created or replaced, at the end.

    Attributes
    ----------
    frames : int
        Written so far; 0 if they could not be, for then there is no file.

    Raises
    ------
    CannotError
        pyarrow is not installed; the file system's refusal, also of `write` and `close`.
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
        self._is_open = True
        try:
            self._made = FileBeside(path)
            try:
                self._writer = pyarrow.parquet.ParquetWriter(self._made.file, self._schema)
            except BaseException:
                self._made.discard()
                raise
        except OSError as error:
            raise cannot_write(path, error) from None

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
            if not self._is_open:
                return  # another queue's thread found that it cannot be written
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
        if not group or not self._is_open:
            return
        table = self._arrow.Table.from_batches(group)
        try:
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        except BaseException as error:
            self._give_up()
            if isinstance(error, OSError):
                raise cannot_write(self.path, error) from None
            raise

    def close(self) -> None:
        """Write the last row group and the index, and give the file its name. Idempotent."""
        with self._lock:
            self._write_group()
            if not self._is_open:
                return
            try:
                self._writer.close()
                self._made.keep()
                self._is_open = False
            except BaseException as error:
                self._give_up()
                if isinstance(error, OSError):
                    raise cannot_write(self.path, error) from None
                raise

    def _give_up(self) -> None:
        """Without its index it can be read by nobody."""
        self._is_open = False
        self.frames = 0
        self._made.discard()

# SPDX-License-Identifier: MIT
"""``--write FILE.pcapng``: every frame, readable by others from the first batch on, however the process ends.

A sink of `Tap`, as `ParquetFile` is. Invariant: between two calls a file on disk is a whole number of blocks,
also after SIGKILL and on a full disk.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import Any, BinaryIO, cast

from pagepool.cli.failure import cannot_write
from pagepool.drivers.capture import PcapngWriter
from pagepool.xdp import XdpBatch

__all__ = ["CaptureFile"]


class CaptureFile:
    """A pcapng file that several taps write to, each as an interface of its own.

    Parameters
    ----------
    path : str
        Created or overwritten. A pipe or device is written to as it is.

    Raises
    ------
    CannotError
        The file system's refusal; also of `interface` and `write`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = _WholeWrites(path, "wb")
            try:
                self._writer = PcapngWriter(cast(BinaryIO, self._file))
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise cannot_write(path, error) from None

    @property
    def frames(self) -> int:
        """int : frames written."""
        return self._writer.frames

    def interface(self, name: str) -> int:
        """Describe an interface; return its number."""
        try:
            with self._lock:
                return self._writer.add_interface(name)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def write(self, interface: int, batch: XdpBatch) -> None:
        """Write the frames of a batch, with one system call."""
        frames = [batch.frame(i) for i in range(len(batch))]
        try:
            with self._lock:
                self._writer.write_frames(frames, batch.came_ns().tolist(), interface=interface, outbound=False)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close it. Idempotent."""
        self._file.close()


class _WholeWrites(io.FileIO):
    """A file without a buffer in which every write is to be found as a whole or, where it failed, not at all."""

    def write(self, data: Any) -> int:
        left = memoryview(data)
        is_file = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        start = self.tell() if is_file else 0
        try:
            while left:
                left = left[super().write(left) :]
        except BaseException:
            if is_file:
                self.truncate(start)
                self.seek(start)
            raise
        return len(data)

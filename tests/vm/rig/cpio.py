# SPDX-License-Identifier: MIT
"""A writer of cpio archives in the "newc" form that the kernel unpacks as its first root file system.

It writes what it is told and nothing else: no owner but root, no time stamps, so equal content gives equal
bytes. The kernel reads several archives one after another out of one initrd, later ones on top: see `image`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import IO

S_DIRECTORY = stat.S_IFDIR | 0o755
BLOCK_BYTES = 512  # the kernel wants archives that follow one another to start on 4; everybody pads to 512


class CpioWriter:
    """Write one archive; a context manager that ends it properly.

    Parameters
    ----------
    path : Path
        File to create.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._inode = 0
        self._names: set[str] = set()

    def __enter__(self) -> CpioWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entry("TRAILER!!!", 0, b"")
        self._file.write(bytes(-self._file.tell() % BLOCK_BYTES))
        self._file.close()

    def add_folder(self, name: str) -> None:
        """Add a folder and those above it; adding it again does nothing."""
        if name and name not in self._names:
            self.add_folder(os.path.dirname(name))
            self._names.add(name)
            self._entry(name, S_DIRECTORY, b"")

    def add_file(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file; of several with one name the first counts."""
        self._add(name, stat.S_IFREG | mode, content)

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def add_path(self, source: Path, name: str) -> None:
        """Add the file or symbolic link ``source`` of this machine as ``name``."""
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            self.add_link(name, os.readlink(source))
        elif stat.S_ISREG(status.st_mode):
            self.add_file(name, source.read_bytes(), mode=stat.S_IMODE(status.st_mode))

    def _add(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        if name in self._names:
            return
        self.add_folder(os.path.dirname(name))
        self._names.add(name)
        self._entry(name, mode, content, major, minor)

    def _entry(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._file.write(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))

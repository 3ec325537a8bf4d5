# SPDX-License-Identifier: MIT
"""Files that two processes map: the rings' own, and an arena as a borrower sees it.

Not an allocator. Invariant: nothing here can be truncated under whoever maps it; a file that is not sealed against
shrinking is refused, because a load beyond its end would be a SIGBUS.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from typing import Final

from pagepool._core.mapped_range import MappedRange
from pagepool.errors import DeviceError
from pagepool.memory import _libc

__all__ = ["FileMapping", "make_rings_file"]

_MADV_POPULATE_READ: Final = 22  # Linux 5.14
_MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3


def make_rings_file(size_bytes: int) -> int:
    """Return the descriptor of a new memory file of zeros that keeps its size for ever; the caller closes it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("pagepool-rings", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("pagepool-rings", flags)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


class FileMapping:
    """Map a sealed memory file whole.

    Parameters
    ----------
    fd : int
        Not kept: the mapping holds the file.
    size_bytes : int
        What it should be.
    writable : bool

    Attributes
    ----------
    base_vaddr, size_bytes : int
        Where it is.
    is_read_only : bool
    range : MappedRange
        Unmaps when its last reference goes: whoever has an address of the memory must hold it.

    Raises
    ------
    DeviceError
        It is no memory file, not sealed against shrinking, of another size, or may not be mapped so.
    """

    def __init__(self, fd: int, size_bytes: int, *, writable: bool) -> None:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            status = os.fstat(fd)
        except OSError as error:
            raise DeviceError(error.errno or 0, "map", "shared memory", "it is no memory file") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise DeviceError(errno.EPERM, "map", "shared memory", "it is not sealed: it could be cut off under us")
        if status.st_size != size_bytes or size_bytes <= 0:
            raise DeviceError(errno.EINVAL, "map", "shared memory", f"it has {status.st_size} bytes, not {size_bytes}")
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self.base_vaddr = _libc.mmap(0, size_bytes, prot, _libc.MAP_SHARED, fd)
        except OSError as error:
            hint = "it was lent for reading only" if writable and error.errno in (errno.EACCES, errno.EPERM) else ""
            raise DeviceError(error.errno or 0, "map", f"{size_bytes} bytes of shared memory", hint) from None
        self.range = MappedRange(self.base_vaddr, size_bytes)
        self.size_bytes = size_bytes
        self.is_read_only = not writable
        self._is_whole = status.st_blocks * 512 >= size_bytes

    def populate(self) -> None:
        """Have the kernel enter all pages now, not at the first touch; where it cannot, they come one by one.

        Not where the file has holes: to read one allocates it, and whoever sent the file may have made it huge.
        """
        if not self._is_whole:
            return
        try:
            _libc.madvise(self.base_vaddr, self.size_bytes, _MADV_POPULATE_READ)
        except OSError:
            pass

    def view(self) -> memoryview:
        """Return all of it as bytes, read-only where the mapping is."""
        window = (ctypes.c_ubyte * self.size_bytes).from_address(self.base_vaddr)
        setattr(window, "range", self.range)  # noqa: B010  (an array type is cached: the instance holds the memory)
        view = memoryview(window).cast("B")
        return view.toreadonly() if self.is_read_only else view

    def __repr__(self) -> str:
        how = "read-only" if self.is_read_only else "writable"
        return f"<FileMapping of {self.size_bytes >> 10} KiB at vaddr {self.base_vaddr:#x}, {how}>"

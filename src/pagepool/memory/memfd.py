# SPDX-License-Identifier: MIT
"""The memory file behind shared slabs: a file without a name whose pages other processes can map.

It grows slab by slab and is sealed against shrinking, by us or by anyone it is passed to: a truncated file
would turn a load in this process into a SIGBUS. Invariant: slab ``i`` of the arena is bytes ``i * 2 MiB``
onwards of the file, so an id means the same page to everybody who maps it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref

from pagepool._core.params import SLAB_SIZE
from pagepool.memory import _libc

_F_SEAL_FUTURE_WRITE = 0x0010  # Linux 5.1; not in the fcntl module of every supported Python
_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3; without it or its opposite the kernel logs a warning


def _create(flags: int) -> int:
    flags |= os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("pagepool", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("pagepool", flags)


class MemoryFile:
    """Create a memory file.

    Parameters
    ----------
    huge : bool
        Of 2 MiB pages out of the administrator's pool.

    Notes
    -----
    The descriptor may be closed before the memory goes: mappings hold the file.

    Context: any thread; the caller serialises `map_slab`.
    """

    def __init__(self, *, huge: bool = False) -> None:
        self.huge = huge
        self.fd = _create((os.MFD_HUGETLB | os.MFD_HUGE_2MB) if huge else 0)
        self._finalizer = weakref.finalize(self, os.close, self.fd)
        self._finalizer.atexit = False
        self.frozen_for: str | None = None
        # Nobody else opens it through /proc/PID/fd: a descriptor for reading stays one.
        os.fchmod(self.fd, 0o600)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def freeze(self, *, writers: bool) -> None:
        """Seal the file as it is, before others get it: it neither grows nor takes another seal. Idempotent.

        Parameters
        ----------
        writers : bool
            Whether others may map it for writing. If not, no new writable mapping, write(2) or hole is possible any
            more, through whatever descriptor, by whatever user; ours that are mapped already stay writable.

        Raises
        ------
        OSError
            ``EINVAL``: the kernel does not know one of the seals (before Linux 5.1). ``EPERM``: it was frozen the
            other way.
        """
        if self.frozen_for is None:
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | (0 if writers else _F_SEAL_FUTURE_WRITE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self.frozen_for = "writers" if writers else "readers"
        elif writers != (self.frozen_for == "writers"):
            raise OSError(errno.EPERM, f"the memory file is sealed for {self.frozen_for} already")

    @property
    def can_punch(self) -> bool:
        """Whether pages can be taken out of the file again."""
        return self.frozen_for != "readers"

    def open_read_only(self) -> int:
        """Return a new descriptor of the file that can be mapped for reading only; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size_bytes(self) -> int:
        """Length of the file, up to the end of the highest slab there ever was."""
        return os.fstat(self.fd).st_size

    def reserve(self, size_bytes: int) -> None:
        """Have the kernel put huge pages by for the file: what it maps of these bytes later cannot be refused.

        Raises
        ------
        OSError
            ENOMEM: so many are not free; the file is as it was.
        """
        # The promise is the file's, and outlives the mapping that asked for it.
        _libc.munmap(_libc.mmap(0, size_bytes, _libc.PROT_READ_WRITE, _libc.MAP_SHARED, self.fd), size_bytes)

    def map_slab(self, vaddr: int, index: int) -> None:
        """Map slab `index` of the file over the hole at `vaddr`, growing the file to hold it."""
        flags = _libc.MAP_SHARED | _libc.MAP_FIXED
        _libc.mmap(vaddr, SLAB_SIZE, _libc.PROT_READ_WRITE, flags, self.fd, index * SLAB_SIZE)
        # After the mapping, so that a refusal does not leave a longer file that the seal keeps from
        # shrinking.
        end = (index + 1) * SLAB_SIZE
        if self.size_bytes < end:
            os.ftruncate(self.fd, end)

    def close(self) -> None:
        """Close the descriptor; mapped slabs stay. Idempotent."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed."""
        return not self._finalizer.alive

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self.fd}, {self.size_bytes >> 20} MiB"
        return f"<MemoryFile {state}{', huge pages' if self.huge else ''}>"

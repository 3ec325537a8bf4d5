# SPDX-License-Identifier: MIT
"""The memory of one UMEM and who uses it: the allocator, its device, and a count of queues.

The first queue makes it; queues that share it take part; with the last one the memory goes (what the user
still holds of it stays until he lets go).
"""

from __future__ import annotations

import threading

from pagepool._core.params import SLAB_SIZE
from pagepool.dma.umem import UmemDevice
from pagepool.drivers.af_xdp.socket import XdpSocket
from pagepool.memory import MemoryKind, MemoryKindError, PageAllocator

__all__ = ["UmemArea"]


class UmemArea:
    """A committed arena, to be registered as a UMEM by the first socket.

    Parameters
    ----------
    first : XdpSocket
        Registers the memory when the first page is mapped.
    size_bytes : int
        Rounded up to slabs of 2 MiB.
    memory : PageAllocator, MemoryKind, str or None
        An allocator that was made with ``commit=True``, or the kind to make; None for huge pages where there
        are any, else the best there is.
    """

    def __init__(self, first: XdpSocket, size_bytes: int, memory: PageAllocator | MemoryKind | str | None) -> None:
        self._lock = threading.Lock()
        self._users = 1
        self._own = not isinstance(memory, PageAllocator)
        if isinstance(memory, PageAllocator):
            if memory.committed_bytes != memory.size_bytes:
                raise ValueError(f"{memory!r} grows as it goes; a UMEM needs PageAllocator(..., commit=True)")
            self.allocator = memory
        else:
            size_bytes = (size_bytes + SLAB_SIZE - 1) // SLAB_SIZE * SLAB_SIZE
            self.allocator = _commit(size_bytes, None if memory is None else MemoryKind(memory))
        self.device = UmemDevice(first.register_umem)

    def get(self) -> UmemArea:
        """Take part."""
        with self._lock:
            self._users += 1
        return self

    def put(self) -> None:
        """Leave; the last one gives the memory back, if it was made here."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last and self._own:
            self.allocator.close()


def _commit(size_bytes: int, kind: MemoryKind | None) -> PageAllocator:
    """Return memory of `kind`, or the best there is.

    Huge pages in a file, not private ones: at a fork(2) the kernel copies pinned private pages at once, and where no
    huge page is free for the copy the fork fails with ENOMEM.
    """
    if kind is not None:
        return PageAllocator(size_bytes, kind, commit=True)
    try:
        return PageAllocator(size_bytes, MemoryKind.MEMFD_HUGETLB, commit=True, fallback=False)
    except MemoryKindError:
        return PageAllocator(size_bytes, MemoryKind.THP, commit=True)

# SPDX-License-Identifier: MIT
"""The mappings of one I/O address space: what is mapped where, and how many devices use it.

It joins a space, which obeys, and an `IovaSpace`, which decides. Invariant: an iova is taken from before its
mapping is made until after it is gone, so that the device never reaches memory through a reused iova.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from typing import Self

from pagepool._core.params import DmaDir
from pagepool.dma.vfio.iova import IovaSpace
from pagepool.dma.vfio.space import IommuSpace
from pagepool.errors import DeviceError

__all__ = ["IoMappings"]

_WHOLE = [(0, (1 << 39) - 1)]  # where the kernel does not say: 39 bits, the least any IOMMU has


class IoMappings:
    """The books of one space.

    Parameters
    ----------
    space : IommuSpace
        Closed by the last `leave`.

    Attributes
    ----------
    iovas : IovaSpace
        Empty until `learn_ranges`.
    mapped : dict of int to int
        iova -> bytes.

    Notes
    -----
    Context: any thread; the lock is held over no system call.
    """

    def __init__(self, space: IommuSpace) -> None:
        self.space = space
        self.iovas = IovaSpace(())
        self.mapped: dict[int, int] = {}
        # A page may die, and be unmapped, in a thread that is inside `iovas` at that moment: its iova waits until then.
        self._lock = threading.RLock()
        self._searching = False
        self._unmapped: deque[tuple[int, int]] = deque()
        self._users = 1

    def join(self) -> Self:
        """Count one more device; pairs with `leave`."""
        with self._lock:
            self._users += 1
        return self

    def leave(self) -> None:
        """Count one device less; the last one unmaps everything and closes the space."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        while self.mapped:
            self.space.unmap(*self.mapped.popitem())
        self.space.close()

    def learn_ranges(self, address_bits: int) -> None:
        """Ask for the ranges, which a device that joins may narrow.

        Raises
        ------
        DeviceError
            ``EEXIST``: something is mapped already where the new device cannot reach.
        """
        info = self.space.info()
        granule_bytes = max(info.page_sizes & -info.page_sizes, 4096)
        iovas = IovaSpace(info.ranges or _WHOLE, granule_bytes, address_bits)
        with self._lock:
            self._settle()
            for iova, size_bytes in list(self.mapped.items()):
                iovas.reserve(iova, size_bytes)
            self.iovas = iovas

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Map at a free iova and return it."""
        with self._lock:
            self._settle()
            self._searching = True
            try:
                iova = self.iovas.alloc(size_bytes)
            finally:
                self._searching = False
            self.mapped[iova] = size_bytes
        readable, writable = dma_dir is not DmaDir.FROM_DEVICE, dma_dir is not DmaDir.TO_DEVICE
        try:
            self.space.map(vaddr, iova, size_bytes, readable=readable, writable=writable)
        except BaseException:
            self._give_back(iova, size_bytes)
            raise
        return iova

    def unmap(self, iova: int, size_bytes: int) -> None:
        """Undo one `map`.

        Raises
        ------
        DeviceError
            ``EINVAL``: nothing was mapped so; nothing has changed.
        """
        if self.mapped.get(iova) != size_bytes:
            what = "a mapping is undone whole and once, with the dma_addr and size it was made with"
            raise DeviceError(errno.EINVAL, "unmap", f"dma_addr {iova:#x}, {size_bytes} bytes", what)
        self.space.unmap(iova, size_bytes)
        self._give_back(iova, size_bytes)

    def _give_back(self, iova: int, size_bytes: int) -> None:
        with self._lock:
            del self.mapped[iova]
            self._unmapped.append((iova, size_bytes))
            if not self._searching:
                self._settle()

    def _settle(self) -> None:
        self._searching = True
        try:
            while self._unmapped:
                self.iovas.free(*self._unmapped.popleft())
        finally:
            self._searching = False

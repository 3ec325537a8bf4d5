# SPDX-License-Identifier: MIT
"""Which IOVA leads where, by the rules of Linux VFIO (type 1, version 2) and with its errors.

A table without verdicts: what VFIO refuses raises its errno, what VFIO allows is done. Source of the rules:
``drivers/vfio/vfio_iommu_type1.c`` of Linux 6.12, and what it answered on a machine with an Intel IOMMU. Invariant:
mappings do not overlap on the device's side, lie inside `IOVA_RANGES`, and are whole or gone.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pagepool._core.params import PAGE_SIZE, SLAB_SIZE, DmaDir
from pagepool.dma.call_sites import CallSites
from pagepool.dma.cpu_memory import is_memory
from pagepool.dma.ownership import Ownership
from pagepool.errors import DeviceError

__all__ = ["DMA_ENTRY_LIMIT", "DMA_READ", "DMA_WRITE", "IOVA_RANGES", "IovaMapping", "IovaTable"]

DMA_READ, DMA_WRITE = 1, 2  # what the device may do
DMA_ENTRY_LIMIT = 65535
#: First and last IOVA of what may be mapped; the hole is the window of message-signalled interrupts.
IOVA_RANGES = ((0, 0xFEDFFFFF), (0xFEF00000, 0xFFFFFFFFFFFF))

_FIRST = 1 << 32
_KEPT_RETIRED = 4096


@dataclass(slots=True, eq=False)
class IovaMapping:
    """One mapping.

    Attributes
    ----------
    iova, vaddr, size_bytes : int
        The range on the device's and on the CPU's side.
    flags : int
        `DMA_READ`, `DMA_WRITE`: what the device may do.
    dma_dir : DmaDir
        The same as the driver said it.
    mapped_at, unmapped_at : tuple
        The user's frames; the latter ``None`` as long as it is mapped.
    has_syncs : bool
        Whether accesses are judged by its `ownership`; VFIO knows no syncs.
    first_page : int or None
        Page id of its first byte in `arena`.
    """

    iova: int
    vaddr: int
    size_bytes: int
    flags: int
    dma_dir: DmaDir
    mapped_at: CallSites = ()
    unmapped_at: CallSites | None = None
    first_page: int | None = None
    arena: Any = None
    has_syncs: bool = True
    ownership: Ownership = field(init=False)

    def __post_init__(self) -> None:
        self.ownership = Ownership(self.vaddr)

    @property
    def end(self) -> int:
        """First IOVA behind it."""
        return self.iova + self.size_bytes


class IovaTable:
    """Mappings of one IOMMU domain.

    Parameters
    ----------
    entry_limit : int
        Mappings at once; VFIO's is a module parameter.
    memlock_bytes : int or None
        ``RLIMIT_MEMLOCK`` of the process, ``None`` for one that is exempt.

    Notes
    -----
    Context: under the lock of its owner.
    """

    def __init__(self, entry_limit: int = DMA_ENTRY_LIMIT, memlock_bytes: int | None = None) -> None:
        self.entry_limit = entry_limit
        self.memlock_bytes = memlock_bytes
        self.locked_bytes = 0
        self.retired: deque[IovaMapping] = deque(maxlen=_KEPT_RETIRED)
        self._starts: list[int] = []
        self._live: dict[int, IovaMapping] = {}
        self._by_vaddr: list[tuple[int, int]] = []  # (vaddr, iova)
        self._longest = 0
        self._next = _FIRST

    def __len__(self) -> int:
        return len(self._live)

    def mappings(self) -> list[IovaMapping]:
        """Return all mappings, by IOVA."""
        return [self._live[start] for start in self._starts]

    def add(self, new: IovaMapping) -> None:
        """Map, or raise a `DeviceError` with VFIO's errno: EINVAL EEXIST ENOSPC EFAULT ENOMEM."""
        what = f"iova {new.iova:#x} size {new.size_bytes:#x} vaddr {new.vaddr:#x}"
        if new.size_bytes <= 0 or (new.iova | new.size_bytes | new.vaddr) % PAGE_SIZE:
            raise _refused(errno.EINVAL, what, f"iova, size and vaddr must be multiples of {PAGE_SIZE}")
        if not 0 < new.flags <= DMA_READ | DMA_WRITE:
            raise _refused(errno.EINVAL, what, "the device must be allowed to read, to write, or both")
        if self.overlapping(new.iova, new.size_bytes):
            raise _refused(errno.EEXIST, what, "something is mapped there")
        if len(self._live) >= self.entry_limit:
            hint = f"{self.entry_limit} mappings is the limit (dma_entry_limit); map slabs, not pages"
            raise _refused(errno.ENOSPC, what, hint)
        if not any(first <= new.iova and new.end - 1 <= last for first, last in IOVA_RANGES):
            raise _refused(errno.EINVAL, what, "outside the IOVA ranges (the MSI window 0xfee00000 is a hole)")
        if not is_memory(new.vaddr, new.size_bytes):
            raise _refused(errno.EFAULT, what, "that is no memory of this process")
        if self.memlock_bytes is not None and self.locked_bytes + new.size_bytes > self.memlock_bytes:
            raise _refused(errno.ENOMEM, what, f"RLIMIT_MEMLOCK is {self.memlock_bytes} bytes; raise it (ulimit -l)")
        self.locked_bytes += new.size_bytes
        insort(self._starts, new.iova)
        insort(self._by_vaddr, (new.vaddr, new.iova))
        self._live[new.iova] = new
        self._longest = max(self._longest, new.size_bytes)

    def remove(self, iova: int, size_bytes: int) -> list[IovaMapping]:
        """Unmap every mapping of a range and return them; EINVAL, and nothing done, if it cuts one in two."""
        what = f"iova {iova:#x} size {size_bytes:#x}"
        if iova < 0 or size_bytes <= 0 or (iova | size_bytes) % PAGE_SIZE:
            raise _refused(errno.EINVAL, what, f"iova and size must be multiples of {PAGE_SIZE}", "unmap")
        found = self.overlapping(iova, size_bytes)
        if any(one.iova < iova or one.end > iova + size_bytes for one in found):
            raise _refused(errno.EINVAL, what, "part of a mapping cannot be unmapped", "unmap")
        for one in found:
            del self._starts[bisect_left(self._starts, one.iova)]
            del self._by_vaddr[bisect_left(self._by_vaddr, (one.vaddr, one.iova))]
            del self._live[one.iova]
            self.locked_bytes -= one.size_bytes
            one.ownership.retire()
            one.arena = None
            self.retired.append(one)
        return found

    def overlapping(self, iova: int, size_bytes: int) -> list[IovaMapping]:
        """Return the mappings that have an IOVA of the range, in order."""
        at = bisect_right(self._starts, iova)
        if at and self._live[self._starts[at - 1]].end > iova:
            at -= 1
        end = bisect_left(self._starts, iova + size_bytes)
        return [self._live[start] for start in self._starts[at:end]]

    def of_memory(self, vaddr: int, size_bytes: int) -> list[IovaMapping]:
        """Return the mappings of a range on the CPU's side."""
        first = bisect_left(self._by_vaddr, (vaddr - self._longest + 1, 0))
        end = bisect_left(self._by_vaddr, (vaddr + size_bytes, 0))
        found = [self._live[iova] for _, iova in self._by_vaddr[first:end]]
        return [one for one in found if one.vaddr + one.size_bytes > vaddr]

    def was_mapped(self, iova: int) -> IovaMapping | None:
        """Return the mapping that was unmapped last of those that had `iova`."""
        for one in reversed(self.retired):
            if one.iova <= iova < one.end:
                return one
        return None

    def allocate(self, size_bytes: int) -> int:
        """Return a free IOVA: never one that was used lately, never a vaddr, with a gap to its neighbours."""
        align = min(max(PAGE_SIZE, 1 << (max(size_bytes, 1) - 1).bit_length()), SLAB_SIZE)
        for start in (self._next, _FIRST):
            iova = -(-start // align) * align
            while iova + size_bytes - 1 <= IOVA_RANGES[-1][1]:
                taken = self.overlapping(iova, size_bytes)
                if not taken:
                    self._next = iova + size_bytes + PAGE_SIZE
                    return iova
                iova = -(-(taken[-1].end + PAGE_SIZE) // align) * align
        raise _refused(errno.ENOSPC, f"{size_bytes} bytes", "no IOVA range is long enough")


def _refused(number: int, what: str, hint: str, call: str = "map") -> DeviceError:
    return DeviceError(number, call, what, hint)

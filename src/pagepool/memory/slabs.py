# SPDX-License-Identifier: MIT
"""Slabs: 2 MiB of memory put into a hole of a reservation, and taken out again.

One provider per kind maps; binding to a NUMA node and populating come after, in this order, because a policy
counts for pages that are not there yet. Which pages of a slab are free is not known here. Invariant:
`SlabSource.commit` leaves either a slab that can be used, or the hole it found and an exception.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from pagepool._core.params import NUMA_NO_NODE, SLAB_SIZE
from pagepool.memory import _libc, huge_pages, numa
from pagepool.memory.kinds import MemoryKind, MemoryKindError
from pagepool.memory.memfd import MemoryFile
from pagepool.memory.reservation import Reservation

_PRIVATE = _libc.MAP_PRIVATE | _libc.MAP_ANONYMOUS | _libc.MAP_FIXED


class Slab(NamedTuple):
    """What was got: the kind it was mapped as, and the node its memory is on."""

    kind: MemoryKind
    nid: int


def map_anonymous(vaddr: int, index: int) -> None:
    """Map private pages of 4 KiB."""
    _libc.mmap(vaddr, SLAB_SIZE, _libc.PROT_READ_WRITE, _PRIVATE)


def map_thp(vaddr: int, index: int) -> None:
    """Map private memory and ask for a transparent huge page; `EINVAL` if the kernel knows none."""
    map_anonymous(vaddr, index)
    _libc.madvise(vaddr, SLAB_SIZE, _libc.MADV_HUGEPAGE)


def map_hugetlb(vaddr: int, index: int) -> None:
    """Map one huge page; `ENOMEM` if none is free."""
    _libc.mmap(vaddr, SLAB_SIZE, _libc.PROT_READ_WRITE, _PRIVATE | _libc.MAP_HUGETLB | _libc.MAP_HUGE_2MB)


def populate(vaddr: int, size_bytes: int) -> None:
    """Have the kernel put (zeroed) pages behind a mapping now, not at the first touch.

    Raises
    ------
    OSError
        ``ENOMEM`` or ``EFAULT``: there is no memory; where a store would have been a SIGBUS, this is an
        exception.
    """
    try:
        _libc.madvise(vaddr, size_bytes, _libc.MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: before Linux 5.14
            raise
        _populate_by_read(vaddr, size_bytes)


def _populate_by_read(vaddr: int, size_bytes: int) -> None:
    # The kernel's own stores touch the pages: where one fails, read(2) stops with EFAULT and no signal is
    # sent.
    window = (ctypes.c_ubyte * size_bytes).from_address(vaddr)
    zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with memoryview(window).cast("B") as view:
            done = 0
            while done < size_bytes:
                done += os.readv(zero, [view[done:]])
    finally:
        os.close(zero)


class SlabSource:
    """Where the slabs of one reservation come from.

    Parameters
    ----------
    reservation : Reservation
        Whose holes are filled.
    kind : MemoryKind
        What to try first.
    fallback : bool
        Whether `MemoryKind.stand_ins` may take its place (and, for a node, whether another node may).
    prefault : bool
        Populate each slab when it is committed. Slabs out of the huge page pool always are: their first touch
        could be a SIGBUS.
    whole : bool
        All slabs will be committed: a file of huge pages is one only if there are enough for all of it.

    Notes
    -----
    Context: any thread; the caller serialises (`PageAllocator` does, with its lock).
    """

    def __init__(
        self, reservation: Reservation, kind: MemoryKind, *, fallback: bool, prefault: bool, whole: bool = False
    ) -> None:
        self.whole = whole
        self.reservation = reservation
        self.kind = kind
        self.fallback = fallback
        self.prefault = prefault
        self.file: MemoryFile | None = None
        self._file_in_use = False

    def commit(self, index: int, nid: int = NUMA_NO_NODE) -> Slab:
        """Put memory behind slab `index`, on node `nid` if one is given.

        Raises
        ------
        MemoryKindError
            Neither the kind nor any stand-in can be had; it speaks of the kind that was asked for.
        """
        refusal: OSError | None = None
        for kind in (self.kind, *(self.kind.stand_ins if self.fallback else ())):
            try:
                slab = self._commit(kind, index, nid)
            except OSError as error:
                refusal = refusal or error
            else:
                self._file_in_use |= kind.is_shared
                return slab
        assert refusal is not None
        raise MemoryKindError(refusal.errno or errno.ENOMEM, self.kind) from refusal

    def _commit(self, kind: MemoryKind, index: int, nid: int) -> Slab:
        vaddr = self.reservation.slab_vaddr(index)
        must_be_huge = kind is MemoryKind.THP and self.prefault and not self.fallback
        huge_before = huge_pages.thp_bytes(*self._span()) if must_be_huge else 0
        try:
            self._provider(kind)(vaddr, index)
            numa.bind(vaddr, SLAB_SIZE, nid, strict=not self.fallback)
            if self.prefault or kind.is_hugetlb:
                populate(vaddr, SLAB_SIZE)
                real_nid = numa.node_of(vaddr)
            else:
                real_nid = nid
            if must_be_huge and huge_pages.thp_bytes(*self._span()) <= huge_before:
                raise OSError(errno.ENOMEM, "the kernel gave 4 KiB pages")
        except BaseException:
            self.reservation.close_hole(index)
            raise
        return Slab(kind, real_nid if real_nid != NUMA_NO_NODE else numa.current_node())

    def decommit(self, index: int, slab: Slab) -> None:
        """Give the memory of slab `index` back to the system; the hole stays reserved.

        Raises
        ------
        OSError
            The kernel has no room to note the hole (vm.max_map_count): the slab is still there, its content
            may be lost.
        """
        if slab.kind.is_shared and (self.file is None or self.file.can_punch):
            # Unmapping alone would leave the pages in the file: punch them out. By vaddr, so that it works
            # when the descriptor is closed. A file that is frozen keeps them until the last who maps it lets go.
            _libc.madvise(self.reservation.slab_vaddr(index), SLAB_SIZE, _libc.MADV_REMOVE)
        self.reservation.close_hole(index)

    def _provider(self, kind: MemoryKind) -> Callable[[int, int], None]:
        if not kind.is_shared:
            return _PRIVATE_PROVIDERS[kind]
        return self._file(kind).map_slab

    def _file(self, kind: MemoryKind) -> MemoryFile:
        """Return the one memory file, made with the first slab: a file cannot have pages of two sizes.

        A file of huge pages that never got one may still be replaced; later it may not, and growing ends
        there.
        """
        if self.file is not None and self.file.closed:
            raise OSError(errno.EBADF, "the memory file is closed")
        if self.file is not None and self.file.huge != kind.is_hugetlb:
            if self._file_in_use:
                raise OSError(
                    errno.ENOMEM, f"the memory file has {'huge' if self.file.huge else '4 KiB'} pages already"
                )
            self.file.close()
            self.file = None
        if self.file is None:
            made = MemoryFile(huge=kind.is_hugetlb)
            if self.whole and made.huge:
                try:
                    made.reserve(self.reservation.size_bytes)
                except OSError:
                    made.close()
                    raise
            self.file = made
        return self.file

    def _span(self) -> tuple[int, int]:
        base = self.reservation.base_vaddr
        return base, base + self.reservation.size_bytes


_PRIVATE_PROVIDERS: dict[MemoryKind, Callable[[int, int], None]] = {
    MemoryKind.ANONYMOUS: map_anonymous,
    MemoryKind.THP: map_thp,
    MemoryKind.HUGETLB: map_hugetlb,
}

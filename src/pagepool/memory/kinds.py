# SPDX-License-Identifier: MIT
"""The kinds of memory a slab can be made of, what stands in for each, and the knob to turn when one cannot be
had.

Words and texts only: no system call, nothing is allocated here.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import NoReturn

from pagepool.errors import DeviceError
from pagepool.memory import huge_pages


class MemoryKind(StrEnum):
    """What a slab of 2 MiB is made of.

    ``ANONYMOUS``
        Private pages of 4 KiB. Always there.
    ``THP``
        A transparent huge page: private memory the kernel backs with 2 MiB if it finds a free run. Needs no
        set-up.
    ``HUGETLB``
        A 2 MiB page out of the pool that the administrator set aside (``vm.nr_hugepages``).
    ``MEMFD``
        Pages of 4 KiB in a memory file: another process can map them through the file descriptor.
    ``MEMFD_HUGETLB``
        A memory file of 2 MiB pages.
    """

    ANONYMOUS = "anonymous"
    THP = "thp"
    HUGETLB = "hugetlb"
    MEMFD = "memfd"
    MEMFD_HUGETLB = "memfd_hugetlb"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ValueError(f"there is no memory kind {value!r}; kinds: {', '.join(cls)}")

    @property
    def is_shared(self) -> bool:
        """Whether another process can map the memory."""
        return self in (MemoryKind.MEMFD, MemoryKind.MEMFD_HUGETLB)

    @property
    def is_hugetlb(self) -> bool:
        """Whether the memory comes out of the administrator's pool of huge pages."""
        return self in (MemoryKind.HUGETLB, MemoryKind.MEMFD_HUGETLB)

    @property
    def stand_ins(self) -> tuple[MemoryKind, ...]:
        """What to try in its place, best first. Shared memory is never replaced by private memory."""
        return _STAND_INS[self]

    @property
    def words(self) -> str:
        """The kind in words, with its page size."""
        return _WORDS[self]


_STAND_INS: dict[MemoryKind, tuple[MemoryKind, ...]] = {
    MemoryKind.ANONYMOUS: (),
    MemoryKind.THP: (MemoryKind.ANONYMOUS,),
    MemoryKind.HUGETLB: (MemoryKind.THP, MemoryKind.ANONYMOUS),
    MemoryKind.MEMFD: (),
    MemoryKind.MEMFD_HUGETLB: (MemoryKind.MEMFD,),
}
_WORDS: dict[MemoryKind, str] = {
    MemoryKind.ANONYMOUS: "4 KiB pages",
    MemoryKind.THP: "transparent 2 MiB huge pages",
    MemoryKind.HUGETLB: "2 MiB huge pages",
    MemoryKind.MEMFD: "shared 4 KiB pages",
    MemoryKind.MEMFD_HUGETLB: "shared 2 MiB huge pages",
}


class MemoryKindError(DeviceError):
    """Memory of the kind that was asked for cannot be had; the text names the knob to turn.

    Attributes
    ----------
    kind : MemoryKind
        What was asked for.
    """

    def __init__(self, errno: int, kind: MemoryKind, obj: str = "a slab of 2 MiB") -> None:
        self.kind = kind
        super().__init__(errno, f"commit {kind}", obj, hint(kind, errno))

    def __reduce__(self) -> tuple[type[MemoryKindError], tuple[int, MemoryKind, str]]:  # type: ignore[override]
        return type(self), (self.errno or 0, self.kind, self.obj)


def hint(kind: MemoryKind, number: int) -> str:
    """Say what to do about errno `number` when a slab of `kind` was refused."""
    if number == errno.EAGAIN:
        return "all memory is locked (mlockall) and RLIMIT_MEMLOCK is reached: raise `ulimit -l`"
    if kind.is_hugetlb:
        if not huge_pages.has_hugetlb():
            return "this kernel has no 2 MiB huge pages (CONFIG_HUGETLBFS)"
        free, there = huge_pages.nr_free_hugepages(), huge_pages.nr_hugepages()
        return (
            f"{free} of {there} huge pages are free (others are in use or promised): raise vm.nr_hugepages "
            "(`sysctl vm.nr_hugepages=N`, one per 2 MiB), on the right NUMA node"
        )
    if kind is MemoryKind.THP and huge_pages.thp_setting() == "never":
        return "transparent huge pages are off: write `madvise` to /sys/kernel/mm/transparent_hugepage/enabled"
    if kind is MemoryKind.THP:
        return "no free run of 2 MiB: memory is fragmented (write 1 to vm.compact_memory), or limited"
    if number == errno.ENOSPC:
        return "the memory file is at a limit of shared memory (cgroup, or the size of the kernel's tmpfs)"
    return "memory is limited: see the cgroup's memory.max, `ulimit -v`, vm.overcommit_memory, vm.max_map_count"

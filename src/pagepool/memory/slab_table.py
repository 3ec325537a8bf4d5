# SPDX-License-Identifier: MIT
"""Which slabs of a reservation have memory, and of what kind: the books over a `SlabSource`.

Always the lowest hole is filled first, so that the arena, and the memory file with it, stays short. It does
not know which pages are free (that is the arena). Invariant: a slab in the table is mapped, a slab that is
not is a hole.
"""

from __future__ import annotations

import heapq
from collections import Counter

from pagepool.memory.kinds import MemoryKind
from pagepool.memory.slabs import Slab, SlabSource


class SlabTable:
    """The slabs that have memory.

    Parameters
    ----------
    source : SlabSource
        Where memory comes from.

    Notes
    -----
    Context: the caller serialises; it may reenter.
    """

    def __init__(self, source: SlabSource) -> None:
        self.source = source
        self._slabs: dict[int, Slab] = {}
        self._holes: list[int] = []  # a heap: the holes below `_end`
        self._end = 0

    def __len__(self) -> int:
        return len(self._slabs)

    def __getitem__(self, index: int) -> Slab:
        return self._slabs[index]

    @property
    def first_hole(self) -> int:
        """The lowest slab that has no memory."""
        return self._holes[0] if self._holes else self._end

    def commit(self, nid: int) -> tuple[int, Slab]:
        """Put memory behind the first hole, on node `nid` if one is given.

        Raises
        ------
        MemoryKindError
            There is no such memory; the hole is as it was.
        """
        # The hole is taken before anything is called, so that a reentrant call takes another.
        index = self.first_hole
        if self._holes:
            heapq.heappop(self._holes)
        else:
            self._end += 1
        try:
            slab = self.source.commit(index, nid)
        except BaseException:
            heapq.heappush(self._holes, index)
            raise
        self._slabs[index] = slab
        return index, slab

    def decommit(self, index: int) -> None:
        """Give the memory of a slab back to the system; on an `OSError` the slab is still there."""
        self.source.decommit(index, self._slabs[index])
        del self._slabs[index]
        heapq.heappush(self._holes, index)

    def kinds(self) -> Counter[MemoryKind]:
        """Count the slabs by the kind they were mapped as."""
        return Counter(slab.kind for slab in self._slabs.values())

    def nids(self) -> Counter[int]:
        """Count the slabs by NUMA node."""
        return Counter(slab.nid for slab in self._slabs.values())

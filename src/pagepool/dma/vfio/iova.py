# SPDX-License-Identifier: MIT
"""Which iovas are free: an allocator over the ranges that an IOMMU offers.

Numbers only; it maps nothing. First fit from below, on natural boundaries, so that a slab of 2 MiB can be one
entry of the IOMMU's page table and device addresses stay short. Invariant: the free intervals are sorted,
disjoint and never touch, and with what is taken they add up to the ranges.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Iterable

from pagepool.errors import DeviceError

__all__ = ["LOWEST_IOVA", "IovaSpace"]

#: Never handed out below: to many a device 0 means "no buffer", and a stray small number then hits nothing.
LOWEST_IOVA = 1 << 20


class IovaSpace:
    """Hand out iova ranges.

    Parameters
    ----------
    ranges : iterable of (first, last)
        What the IOMMU offers, both ends included, as the kernel says it. Holes between them, such as the
        window of message-signalled interrupts, are never touched.
    granule_bytes : int
        The IOMMU's smallest page, a power of two; every size is a multiple of it.
    address_bits : int
        What the device can reach: iovas stay below ``1 << address_bits``.

    Notes
    -----
    Context: the caller locks.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]], granule_bytes: int = 4096, address_bits: int = 64) -> None:
        self.granule_bytes = granule_bytes
        self.ranges = tuple(ranges)
        mask = granule_bytes - 1
        self._first: list[int] = []
        self._end: list[int] = []
        for first, last in sorted(self.ranges):
            first = (max(first, LOWEST_IOVA) + mask) & ~mask
            end = min(last + 1, 1 << address_bits) & ~mask
            if first < end:
                self._insert(first, end)

    @property
    def free_bytes(self) -> int:
        """Bytes that are free, in however many pieces."""
        return sum(self._end) - sum(self._first)

    @property
    def free_intervals(self) -> list[tuple[int, int]]:
        """The free intervals as (first, end), `end` not included."""
        return list(zip(self._first, self._end, strict=True))

    def alloc(self, size_bytes: int) -> int:
        """Take a range.

        Parameters
        ----------
        size_bytes : int
            A multiple of the granule.

        Returns
        -------
        int
            Its first iova, aligned to the largest power of two that divides `size_bytes`.

        Raises
        ------
        ValueError
            `size_bytes` is no multiple of the granule, or not positive.
        DeviceError
            ``ENOSPC``: no free interval is long enough.
        """
        self._check(size_bytes, "size_bytes")
        align = size_bytes & -size_bytes
        for i, (first, end) in enumerate(zip(self._first, self._end, strict=True)):
            iova = (first + align - 1) & -align
            if iova + size_bytes <= end:
                self._take(i, iova, iova + size_bytes)
                return iova
        raise DeviceError(
            errno.ENOSPC,
            f"find {size_bytes} free bytes of iova in",
            self._words(),
            "the device's address width and the IOMMU's ranges bound what can be mapped at a time",
        )

    def reserve(self, iova: int, size_bytes: int) -> None:
        """Take exactly this range.

        Raises
        ------
        ValueError
            Not on the granule.
        DeviceError
            ``EEXIST``: part of it is taken, or outside the ranges; the text lists them.
        """
        self._check(size_bytes, "size_bytes")
        self._check(iova, "iova", least=0)
        i = bisect_left(self._first, iova + 1) - 1
        if i < 0 or iova + size_bytes > self._end[i]:
            raise DeviceError(
                errno.EEXIST,
                f"reserve iova {iova:#x} + {size_bytes:#x} in",
                self._words(),
                "part of it is taken, or in no range",
            )
        self._take(i, iova, iova + size_bytes)

    def free(self, iova: int, size_bytes: int) -> None:
        """Give a range back, as it was taken.

        Raises
        ------
        ValueError
            Part of it is free already: the books would be wrong from here on.
        """
        self._check(size_bytes, "size_bytes")
        self._insert(iova, iova + size_bytes)

    def _take(self, i: int, first: int, end: int) -> None:
        """Cut [first, end) out of free interval `i`, leaving nothing, a rest on one side, or one on each."""
        whole_first, whole_end = self._first[i], self._end[i]
        rests = [(a, b) for a, b in ((whole_first, first), (end, whole_end)) if a < b]
        self._first[i : i + 1] = [a for a, _ in rests]
        self._end[i : i + 1] = [b for _, b in rests]

    def _insert(self, first: int, end: int) -> None:
        """Put [first, end) among the free intervals and join what it touches."""
        i = bisect_left(self._first, first)
        before, after = i > 0 and self._end[i - 1] >= first, i < len(self._first) and self._first[i] <= end
        if (before and self._end[i - 1] > first) or (after and self._first[i] < end):
            raise ValueError(f"iova {first:#x} to {end:#x} is free already, at least in part")
        start = i - before
        stop = i + after
        first = self._first[i - 1] if before else first
        end = self._end[i] if after else end
        self._first[start:stop] = [first]
        self._end[start:stop] = [end]

    def _check(self, value: int, name: str, least: int = 1) -> None:
        if value < least or value & (self.granule_bytes - 1):
            raise ValueError(f"{name} {value:#x} is no multiple of the IOMMU's page of {self.granule_bytes} bytes")

    def _words(self) -> str:
        return ", ".join(f"{first:#x}-{last:#x}" for first, last in self.ranges) or "no range"

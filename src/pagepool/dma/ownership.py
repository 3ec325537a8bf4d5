# SPDX-License-Identifier: MIT
"""Whose each byte of a mapping is, the CPU's or the device's: the DMA API's rule as a state machine.

Three states per byte: the CPU's; the device's; the device's and written by it. A sync for the device gives bytes to it,
a sync for the CPU takes them back, a mapping begins as the CPU's (pools map without a sync, as the kernel's do). What
the CPU does between syncs cannot be trapped, but it leaves traces: bytes that are the device's are remembered as they
were, and a difference is a write of the CPU's that no sync covers. A read of the CPU's leaves none: it is judged where
it comes through a door of pagepool's (`SoftIommu.cpu_access`) or is announced (`SoftIommu.cpu_read`).

Invariant: a byte is accessible for the device if and only if its state is not `CPU`. Costs 8 KiB per page touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pagepool._core.params import PAGE_SIZE
from pagepool.dma.call_sites import CallSites
from pagepool.dma.cpu_memory import read_memory

__all__ = ["Ownership"]

_CPU, _DEVICE, _WRITTEN = 0, 1, 2
_CPU_BYTE, _WRITTEN_BYTE = bytes((_CPU,)), bytes((_WRITTEN,))
_KEPT_EVENTS = 8


class _OwnedPage:
    """One 4 KiB page of a mapping: a state per byte, the bytes last seen, and what was done to it last."""

    __slots__ = ("events", "owner", "seen")

    def __init__(self) -> None:
        self.owner = bytearray(PAGE_SIZE)
        self.seen = bytearray(PAGE_SIZE)
        self.events: deque[tuple[str, int, int, CallSites]] = deque(maxlen=_KEPT_EVENTS)


class Ownership:
    """Owners of the bytes of one mapping. Offsets are from its first byte; the caller has checked the range.

    Parameters
    ----------
    vaddr : int
        First byte of the mapping on the CPU's side, page aligned.

    Notes
    -----
    Context: under the lock of the IOMMU.
    """

    def __init__(self, vaddr: int) -> None:
        self.vaddr = vaddr
        self._pages: dict[int, _OwnedPage] = {}

    def to_device(self, offset: int, size_bytes: int, sites: CallSites) -> None:
        """Give bytes to the device."""
        self._give(offset, size_bytes, _DEVICE)
        self.note("synced for the device", offset, size_bytes, sites)

    def to_cpu(self, offset: int, size_bytes: int, sites: CallSites) -> int | None:
        """Take bytes back for the CPU; return the first that it wrote while it was the device's, or ``None``."""
        early = self.cpu_wrote(offset, size_bytes)
        self._give(offset, size_bytes, _CPU)
        self.note("synced for the CPU", offset, size_bytes, sites)
        return early

    def not_the_devices(self, offset: int, size_bytes: int) -> int | None:
        """Return the first byte that is the CPU's, or ``None``."""
        return self._first(offset, size_bytes, _CPU)

    def unread_by_cpu(self, offset: int, size_bytes: int) -> int | None:
        """Return the first byte that the device wrote and nobody synced for the CPU, or ``None``."""
        return self._first(offset, size_bytes, _WRITTEN)

    def cpu_wrote(self, offset: int, size_bytes: int) -> int | None:
        """Return the first byte that is the device's and not what it was, or ``None``; it is then known as it is."""
        first: int | None = None
        for index, start, end in _pages(offset, size_bytes):
            page = self._pages.get(index)
            if page is None:
                continue
            at = index * PAGE_SIZE
            now = read_memory(self.vaddr + at + start, end - start)
            if page.seen[start:end] == now:
                continue
            for i, (known, found) in enumerate(zip(page.seen[start:end], now, strict=True), start):
                if known != found and page.owner[i] != _CPU:
                    page.seen[i] = found
                    first = at + i if first is None else first
        return first

    def device_wrote(self, offset: int, size_bytes: int, sites: CallSites) -> None:
        """Remember what the device has just written."""
        self._give(offset, size_bytes, _WRITTEN)
        self.note("written by the device", offset, size_bytes, sites)

    def cpu_will_write(self, offset: int, size_bytes: int, sites: CallSites) -> None:
        """The CPU says that it writes: the device must not access these bytes before the next sync for it."""
        self._give(offset, size_bytes, _CPU)
        self.note("written by the CPU", offset, size_bytes, sites)

    def seen_by_cpu(self, offset: int, size_bytes: int, sites: CallSites) -> None:
        """The CPU looked at what the device wrote: its bytes from now on, so that one mistake is told of once."""
        for index, start, end in _pages(offset, size_bytes):
            page = self._pages.get(index)
            if page is not None:
                page.owner[start:end] = page.owner[start:end].replace(_WRITTEN_BYTE, _CPU_BYTE)
        self.note("accessed by the CPU", offset, size_bytes, sites)

    def note(self, what: str, offset: int, size_bytes: int, sites: CallSites) -> None:
        """Add to the history of each page of a range."""
        for index, _, _ in _pages(offset, size_bytes):
            self._page(index).events.append((what, offset, size_bytes, sites))

    def events(self, offset: int) -> list[tuple[str, int, int, CallSites]]:
        """Return what was done last to the page at `offset`, oldest first."""
        page = self._pages.get(offset // PAGE_SIZE)
        return [] if page is None else list(page.events)

    def retire(self) -> None:
        """Forget the bytes and keep the history: the mapping is gone."""
        for page in self._pages.values():
            page.owner = page.seen = bytearray()

    def _page(self, index: int) -> _OwnedPage:
        page = self._pages.get(index)
        if page is None:
            page = self._pages[index] = _OwnedPage()
        return page

    def _give(self, offset: int, size_bytes: int, state: int) -> None:
        for index, start, end in _pages(offset, size_bytes):
            page = self._page(index)
            page.owner[start:end] = bytes((state,)) * (end - start)
            if state != _CPU:
                page.seen[start:end] = read_memory(self.vaddr + index * PAGE_SIZE + start, end - start)

    def _first(self, offset: int, size_bytes: int, state: int) -> int | None:
        for index, start, end in _pages(offset, size_bytes):
            page = self._pages.get(index)
            at = (start if state == _CPU else -1) if page is None else page.owner.find(state, start, end)
            if at >= 0:
                return index * PAGE_SIZE + at
        return None


def _pages(offset: int, size_bytes: int) -> Sequence[tuple[int, int, int]]:
    """Return index, first byte and end of each page of a range; nearly always it is one page."""
    index, start = divmod(offset, PAGE_SIZE)
    if start + size_bytes <= PAGE_SIZE:
        return ((index, start, start + size_bytes),) if size_bytes > 0 else ()
    last, end = divmod(offset + size_bytes - 1, PAGE_SIZE)
    whole = [(between, 0, PAGE_SIZE) for between in range(index + 1, last)]
    return [(index, start, PAGE_SIZE), *whole, (last, 0, end + 1)]

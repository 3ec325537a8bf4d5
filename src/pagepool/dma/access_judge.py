# SPDX-License-Identifier: MIT
"""Is this access allowed: the rules that each access of a device, each sync and each announced CPU access is held to.

It looks and reports, and changes nothing; whoever asks then does what was allowed. An answer of ``None`` is a refusal
that has been reported (and, in raise mode, raised). Order of the rules: mapped, in range, still memory, direction, and
last, for what an IOMMU would let through, whose byte it is.
"""

from __future__ import annotations

from pagepool._core.params import PAGE_SHIFT, PAGE_SIZE, DmaDir
from pagepool.dma.cpu_memory import is_memory
from pagepool.dma.finding_log import FindingLog
from pagepool.dma.findings import FindingKind
from pagepool.dma.iova_table import IovaMapping, IovaTable
from pagepool.dma.page_names import object_pages

__all__ = ["AccessJudge"]


class AccessJudge:
    """Judge ranges against a table.

    Parameters
    ----------
    device : SoftIommu
        Whose pools say where an object ends.
    table : IovaTable
    log : FindingLog

    Notes
    -----
    Context: under the lock of the device.
    """

    def __init__(self, device: object, table: IovaTable, log: FindingLog) -> None:
        self._device = device
        self._table = table
        self._log = log

    def for_access(self, dma_addr: int, size_bytes: int, flag: int, what: str) -> IovaMapping | None:
        """Judge an access of the device; return the mapping that it may use."""
        one = self._reached(dma_addr, size_bytes, what)
        if one is None:
            return None
        if not one.flags & flag:
            text = f"{what} to a mapping that is {one.dma_dir.name}"
            self._log.add(FindingKind.WRONG_DIRECTION, text, dma_addr, size_bytes, one)
            return None
        if one.has_syncs and size_bytes:
            offset = dma_addr - one.iova
            at = one.ownership.not_the_devices(offset, size_bytes)
            why = "is the CPU's: it was not synced for the device"
            if at is None:
                at = one.ownership.cpu_wrote(offset, size_bytes)
                why = "was written by the CPU after it was synced for the device"
            if at is not None:
                text = f"{what}, of which byte {at - offset} {why}"
                self._log.add(FindingKind.NOT_SYNCED_FOR_DEVICE, text, dma_addr, size_bytes, one)
        return one

    def for_sync(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir, what: str) -> IovaMapping | None:
        """Judge a sync; return the mapping if it has owners to change."""
        one = self._reached(dma_addr, size_bytes, what)
        if one is not None and one.dma_dir != dma_dir and one.dma_dir != DmaDir.BIDIRECTIONAL:
            text = f"{what} {DmaDir(dma_dir).name} of a mapping that is {one.dma_dir.name}"
            self._log.add(FindingKind.WRONG_DIRECTION, text, dma_addr, size_bytes, one)
        return one if one is not None and one.has_syncs and size_bytes else None

    def for_cpu(self, dma_addr: int, size_bytes: int, what: str) -> IovaMapping | None:
        """Judge an access that the CPU announces; return the mapping if it has owners."""
        one = self._reached(dma_addr, size_bytes, what)
        if one is None or not one.has_syncs or not size_bytes:
            return None
        self.must_be_read(one, dma_addr - one.iova, size_bytes, what)
        return one

    def for_look(self, dma_addr: int, size_bytes: int) -> IovaMapping | None:
        """Return the mapping if the device wrote to the range and nobody synced it for the CPU; reports nothing.

        The CPU may look wherever it likes: what is not mapped, or not judged by syncs, is no matter of the device's.
        """
        found = self._table.overlapping(dma_addr, max(size_bytes, 1))
        if not found or not found[0].has_syncs or found[0].iova > dma_addr or dma_addr + size_bytes > found[0].end:
            return None
        at = found[0].ownership.unread_by_cpu(dma_addr - found[0].iova, size_bytes)
        return None if at is None else found[0]

    def must_be_read(self, one: IovaMapping, offset: int, size_bytes: int, what: str) -> None:
        """Report bytes that the device wrote and nobody has synced for the CPU."""
        at = one.ownership.unread_by_cpu(offset, size_bytes)
        if at is not None:
            text = f"{what}, of which the device wrote byte {at - offset} and nobody synced it for the CPU"
            self._log.add(FindingKind.NOT_SYNCED_FOR_CPU, text, one.iova + offset, size_bytes, one)

    def _reached(self, dma_addr: int, size_bytes: int, what: str) -> IovaMapping | None:
        if size_bytes < 0:
            raise ValueError(f"{what} of {size_bytes} bytes")
        found = self._table.overlapping(dma_addr, max(size_bytes, 1))
        one = found[0] if found and found[0].iova <= dma_addr else None
        if one is None:
            gone = self._table.was_mapped(dma_addr)
            kind = FindingKind.UNMAPPED if gone is None else FindingKind.USE_AFTER_UNMAP
            text = what if gone is None else f"{what} after the unmap"
            self._log.add(kind, text, dma_addr, size_bytes, gone)
            return None
        beyond = max(dma_addr + size_bytes - one.end, self._beyond_object(one, dma_addr - one.iova, size_bytes))
        if beyond > 0:
            text = f"{what}, the last {beyond} bytes beyond the end"
            self._log.add(FindingKind.OUT_OF_RANGE, text, dma_addr, size_bytes, one)
            return None
        if not is_memory(one.vaddr + dma_addr - one.iova, size_bytes):
            text = f"{what}: the memory was given back to the system while it was mapped"
            self._log.add(FindingKind.UNMAPPED, text, dma_addr, size_bytes, one)
            return None
        return one

    def _beyond_object(self, one: IovaMapping, offset: int, size_bytes: int) -> int:
        # A slab has objects of pools in it, and an IOMMU cannot see where one ends: the pools know. Asked only where
        # an access leaves a page.
        if one.arena is None or one.first_page is None or offset % PAGE_SIZE + size_bytes <= PAGE_SIZE:
            return 0
        pages = object_pages(self._device, one.arena)
        if not pages:
            return 0
        at = (one.first_page << PAGE_SHIFT) + offset
        object_bytes = pages << PAGE_SHIFT
        return at % object_bytes + size_bytes - object_bytes

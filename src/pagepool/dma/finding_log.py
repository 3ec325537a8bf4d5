# SPDX-License-Identifier: MIT
"""Where findings go: the first that are found are kept, all are counted, and in raise mode each is an exception."""

from __future__ import annotations

from collections import Counter

from pagepool._core.params import PAGE_SHIFT
from pagepool.dma.call_sites import CallSites, user_call_sites
from pagepool.dma.findings import Finding, FindingKind, HistoryEntry, report_text
from pagepool.dma.iova_table import IovaMapping
from pagepool.dma.page_names import object_pages
from pagepool.errors import DmaFault

__all__ = ["FindingLog"]


class FindingLog:
    """Findings of one device.

    Parameters
    ----------
    device : SoftIommu
        Whose.
    collect : bool
        Keep findings and go on; otherwise raise each as a `DmaFault`.
    max_findings : int
        How many to keep; later ones are counted only.

    Notes
    -----
    Context: under the lock of the device.
    """

    def __init__(self, device: object, *, collect: bool, max_findings: int) -> None:
        if max_findings < 1:
            raise ValueError(f"max_findings {max_findings} is less than 1")
        self._device = device
        self.collect = collect
        self.max_findings = max_findings
        self.kept: list[Finding] = []
        self.counts: Counter[FindingKind] = Counter()

    @property
    def dropped(self) -> int:
        """How many were found and not kept."""
        return self.counts.total() - len(self.kept)

    def add(
        self,
        kind: FindingKind,
        what: str,
        dma_addr: int,
        size_bytes: int,
        mapping: IovaMapping | None,
        *,
        quiet: bool = False,
    ) -> Finding:
        """Keep a finding about a range that begins in `mapping`, live or gone; in raise mode, raise unless `quiet`."""
        page_id = vaddr = None
        history: tuple[HistoryEntry, ...] = ()
        if mapping is not None:
            offset = min(max(dma_addr - mapping.iova, 0), mapping.size_bytes - 1)
            vaddr = mapping.vaddr + offset
            page_id = self._page_id(mapping, offset)
            history = _history(mapping, offset)
        finding = Finding(kind, what, dma_addr, size_bytes, page_id, vaddr, history, user_call_sites())
        self.counts[kind] += 1
        if len(self.kept) < self.max_findings:
            self.kept.append(finding)
        if not self.collect and not quiet:
            raise DmaFault(str(finding), finding)
        return finding

    def report(self, name: str) -> str:
        """Return everything as text."""
        return report_text(name, self.kept, self.dropped)

    def _page_id(self, mapping: IovaMapping, offset: int) -> int | None:
        if mapping.first_page is None:
            return None
        page_id = mapping.first_page + (offset >> PAGE_SHIFT)
        pages = object_pages(self._device, mapping.arena) if mapping.arena is not None else 1
        return page_id - page_id % max(pages, 1)


def _history(mapping: IovaMapping, offset: int) -> tuple[HistoryEntry, ...]:
    def entry(what: str, sites: CallSites) -> HistoryEntry:
        return HistoryEntry(what, mapping.iova, mapping.size_bytes, sites)

    entries = [entry(f"mapped {mapping.dma_dir.name}", mapping.mapped_at)]
    entries += [
        HistoryEntry(what, mapping.iova + start, size_bytes, sites)
        for what, start, size_bytes, sites in mapping.ownership.events(offset)
    ]
    if mapping.unmapped_at is not None:
        entries.append(entry("unmapped", mapping.unmapped_at))
    return tuple(entries)

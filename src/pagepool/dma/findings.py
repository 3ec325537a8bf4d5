# SPDX-License-Identifier: MIT
"""What a software IOMMU found: plain values and their text. Nothing here decides what is a fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from pagepool.dma.call_sites import CallSites, site_text

__all__ = ["Finding", "FindingKind", "HistoryEntry", "report_text"]


class FindingKind(StrEnum):
    """What is wrong."""

    UNMAPPED = "unmapped"
    """The device accessed, or the driver synced, what was never mapped."""
    WRONG_DIRECTION = "wrong direction"
    """The device wrote to a ``TO_DEVICE`` mapping or read from a ``FROM_DEVICE`` one, or a sync named another one."""
    OUT_OF_RANGE = "out of range"
    """The range begins in a mapping or an object and does not end there."""
    NOT_SYNCED_FOR_DEVICE = "not synced for the device"
    """The device accessed bytes that are the CPU's, or that the CPU wrote after they were synced for the device."""
    NOT_SYNCED_FOR_CPU = "not synced for the CPU"
    """The CPU accessed bytes that the device wrote, or wrote to bytes that are the device's."""
    USE_AFTER_UNMAP = "use after unmap"
    """The device accessed, or the driver synced, what is not mapped any more."""
    DOUBLE_MAP = "double map"
    """Memory was mapped that is mapped in this direction already, or an IOVA that is taken."""
    DOUBLE_UNMAP = "double unmap"
    """A mapping was unmapped that is unmapped already."""
    MISMATCHED_UNMAP = "mismatched unmap"
    """What was unmapped was mapped otherwise (another start, length or direction), or never."""
    LEAKED_MAPPING = "leaked mapping"
    """The device went away and something was still mapped."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that was done to a mapping.

    Attributes
    ----------
    what : str
        ``"mapped"``, ``"synced for the device"``, ``"written by the device"`` ...
    dma_addr, size_bytes : int
        The range it was done to.
    call_sites : tuple
        (file name, line, function) of the user's frames, innermost first.
    """

    what: str
    dma_addr: int
    size_bytes: int
    call_sites: CallSites

    def __str__(self) -> str:
        where = site_text(self.call_sites[0]) if self.call_sites else "pagepool itself"
        return f"{self.what}: {self.size_bytes} bytes at {self.dma_addr:#x}, {where}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict on one access or call.

    Attributes
    ----------
    kind : FindingKind
    what : str
        The access or call, and what is wrong with it.
    dma_addr, size_bytes : int
        Its range, on the device's side.
    page_id : int or None
        First page of the object it begins in; ``None`` where no pool's memory was mapped there.
    vaddr : int or None
        The same byte as `dma_addr` on the CPU's side, where it is known.
    history : tuple of HistoryEntry
        What was done to the mapping and to this page of it, oldest first: when it was mapped, the last syncs and
        writes, when it was unmapped.
    call_sites : tuple
        The user's frames at the time, innermost first.
    """

    kind: FindingKind
    what: str
    dma_addr: int
    size_bytes: int
    page_id: int | None
    vaddr: int | None
    history: tuple[HistoryEntry, ...]
    call_sites: CallSites

    def __str__(self) -> str:
        page = "" if self.page_id is None else f", page {self.page_id}"
        lines = [f"{self.kind}: {self.what} ({self.size_bytes} bytes at {self.dma_addr:#x}{page})"]
        lines += [f"    at {site_text(site)}" for site in self.call_sites]
        lines += [f"    {entry}" for entry in self.history]
        return "\n".join(lines)


def report_text(name: str, findings: Iterable[Finding], dropped: int) -> str:
    """Return all findings as text; those of one kind from one line of code are shown once, with their number.

    The line of a leak is the one that mapped, whoever took the device away.
    """
    groups: dict[tuple[FindingKind, CallSites], list[Finding]] = {}
    for finding in findings:
        is_leak = finding.kind is FindingKind.LEAKED_MAPPING and finding.history
        sites = finding.history[0].call_sites if is_leak else finding.call_sites
        groups.setdefault((finding.kind, sites), []).append(finding)
    total = sum(map(len, groups.values())) + dropped
    lines = [f"{name}: {total or 'no'} finding{'' if total == 1 else 's'}"]
    for number, group in enumerate(groups.values(), 1):
        more = f" [{len(group)} times, the first:]" if len(group) > 1 else ""
        lines.append(f"{number}.{more} {group[0]}")
    if dropped:
        lines.append(f"and {dropped} more that were not kept")
    return "\n".join(lines)

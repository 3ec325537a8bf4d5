# SPDX-License-Identifier: MIT
"""`SoftIommu`: an IOMMU in software that judges every access of a device, and every call of its driver.

The device in front of it is software too: the loopback NIC, or whatever reads and writes through `dma_read` and
`dma_write`. Errors and limits are VFIO's (`iova_table`), whose byte it is follows `ownership`, verdicts are values
(`findings`). The CPU's accesses it sees where they come through a `Page` or a batch; it traps nothing else. Invariant:
no dma_addr is a vaddr, and none is used twice, so that a mistake never works by luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

from pagepool._core.params import DmaDir
from pagepool.dma.call_sites import user_call_sites
from pagepool.dma.cpu_memory import read_memory, write_memory
from pagepool.dma.findings import Finding, FindingKind, report_text
from pagepool.dma.iommu_domain import IommuDomain
from pagepool.dma.iova_table import DMA_ENTRY_LIMIT, DMA_READ, DMA_WRITE
from pagepool.errors import DmaFault

__all__ = ["SoftIommu"]


class SoftIommu(IommuDomain):
    """Make a software IOMMU, a `DmaDevice` and a `DmaBus` in one.

    Parameters
    ----------
    name : str
        For reports.
    strict : bool
        Map page by page, as ``iommu.strict`` domains do, so that a page that left its pool is out of the device's
        reach at once; by default by slabs of 2 MiB.
    collect : bool
        Keep findings and go on, instead of raising each as a `DmaFault`.
    check_syncs : bool
        Judge syncs too. Without, pools make none for this device.
    check_recycle : bool
        Also report bytes that go back to the device, or are unmapped, after it wrote and before a sync for the CPU:
        right for a driver that looks at every frame, wrong for one that may drop unseen.
    entry_limit : int
        Mappings at once, VFIO's ``dma_entry_limit``.
    memlock_bytes : int or None
        ``RLIMIT_MEMLOCK`` to obey; ``None`` as for root.
    max_findings : int
        Findings to keep; later ones are counted only.

    Notes
    -----
    A refused access moves nothing, and a refused read gives 0xff bytes, as a PCI bus does. An access that lacks a
    sync moves data in collect mode, as it would with a real IOMMU.

    Context: any thread; one lock.
    """

    def __init__(
        self,
        name: str = "soft-iommu",
        *,
        strict: bool = False,
        collect: bool = False,
        check_syncs: bool = True,
        check_recycle: bool = False,
        entry_limit: int = DMA_ENTRY_LIMIT,
        memlock_bytes: int | None = None,
        max_findings: int = 1000,
    ) -> None:
        super().__init__(
            strict=strict,
            collect=collect,
            check_syncs=check_syncs,
            check_recycle=check_recycle,
            entry_limit=entry_limit,
            memlock_bytes=memlock_bytes,
            max_findings=max_findings,
        )
        self.name = name
        self._closed = False

    # -- syncs -----------------------------------------------------------------------------------------------------

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Take bytes back from the device."""
        with self._lock:
            one = self._judge.for_sync(dma_addr, size_bytes, dma_dir, "sync for the CPU")
            if one is not None:
                offset = dma_addr - one.iova
                early = one.ownership.to_cpu(offset, size_bytes, user_call_sites())
                if early is not None:
                    what = f"the CPU wrote byte {early - offset} of it before this sync for the CPU"
                    self._log.add(FindingKind.NOT_SYNCED_FOR_CPU, what, dma_addr, size_bytes, one)

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Give bytes to the device."""
        with self._lock:
            one = self._judge.for_sync(dma_addr, size_bytes, dma_dir, "sync for the device")
            if one is not None:
                if self.check_recycle:
                    self._judge.must_be_read(one, dma_addr - one.iova, size_bytes, "sync for the device")
                one.ownership.to_device(dma_addr - one.iova, size_bytes, user_call_sites())

    # -- the device's side: a DmaBus -----------------------------------------------------------------------------

    def dma_write(self, dma_addr: int, data: Any) -> None:
        """Write bytes to memory, as the device."""
        payload = memoryview(data).tobytes()
        with self._lock:
            one = self._judge.for_access(dma_addr, len(payload), DMA_WRITE, "device write")
            if one is not None:
                offset = dma_addr - one.iova
                write_memory(one.vaddr + offset, payload)
                if one.has_syncs:
                    one.ownership.device_wrote(offset, len(payload), user_call_sites())

    def dma_read(self, dma_addr: int, size_bytes: int) -> bytes:
        """Read bytes of memory, as the device."""
        with self._lock:
            one = self._judge.for_access(dma_addr, size_bytes, DMA_READ, "device read")
            return b"\xff" * size_bytes if one is None else read_memory(one.vaddr + dma_addr - one.iova, size_bytes)

    # -- the CPU's side ------------------------------------------------------------------------------------------

    def cpu_read(self, frames: Any) -> None:
        """Say that the CPU is about to read, and have it judged.

        Parameters
        ----------
        frames : Page, XdpBatch, or (dma_addr, size_bytes)
            All bytes of the page's handle, or of each frame of the batch.

        Raises
        ------
        DmaFault
            The device wrote there and nobody has synced it for the CPU.
        """
        self._cpu_access(frames, False)

    def cpu_write(self, frames: Any) -> None:
        """Say that the CPU is about to write, and have it judged: the device's next access needs a sync first."""
        self._cpu_access(frames, True)

    def cpu_access(self, dma_addr: int, size_bytes: int) -> None:
        """Judge an access of the CPU's that nobody announced: every `Page` and batch of this device's pools asks here.

        Raises
        ------
        DmaFault
            The device wrote there and nobody has synced it for the CPU. In collect mode the bytes count as the CPU's
            from then on, so that one mistake is told of once.
        """
        with self._lock:
            one = self._judge.for_look(dma_addr, size_bytes)
            if one is not None:
                if self._log.collect:
                    one.ownership.seen_by_cpu(dma_addr - one.iova, size_bytes, user_call_sites())
                what = "CPU access to bytes that the device wrote and nobody synced for the CPU"
                self._log.add(FindingKind.NOT_SYNCED_FOR_CPU, what, dma_addr, size_bytes, one)

    # -- verdicts ------------------------------------------------------------------------------------------------

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, in order; the first `max_findings`."""
        with self._lock:
            return tuple(self._log.kept)

    @property
    def counts(self) -> Counter[FindingKind]:
        """How many of each kind were found, also those not kept."""
        with self._lock:
            return self._log.counts.copy()

    def report(self) -> str:
        """Return all findings as text."""
        with self._lock:
            return self._log.report(self.name)

    def check(self) -> None:
        """Raise a `DmaFault` with the report if there is any finding; for the end of a test."""
        with self._lock:
            if self._log.kept:
                raise DmaFault(self.report(), self._log.kept[0])

    def close(self) -> None:
        """Take the device away: what is still mapped by then has leaked. Idempotent.

        Slabs outlive their pools on purpose; those of which no pool holds a page are unmapped here, and are no leak.

        Raises
        ------
        DmaFault
            The first leak, in raise mode; all are in `findings`.
        """
        if self._closed:
            return
        self._closed = True
        leaks = self._leaks()
        if leaks and not self._log.collect:
            raise DmaFault(report_text(self.name, leaks, 0), leaks[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.close()
        except DmaFault:
            if kind is None:  # an exception on its way explains the leaks better than they do
                raise

    def _cpu_access(self, frames: Any, write: bool) -> None:
        what = "CPU write" if write else "CPU read"
        for dma_addr, size_bytes in _ranges(frames):
            with self._lock:
                one = self._judge.for_cpu(dma_addr, size_bytes, what)
                if one is not None and write:
                    one.ownership.cpu_will_write(dma_addr - one.iova, size_bytes, user_call_sites())

    def __repr__(self) -> str:
        return f"<SoftIommu {self.name}, {self.nr_mappings} mappings, {self.counts.total()} findings>"


def _ranges(frames: Any) -> Iterator[tuple[int, int]]:
    if isinstance(frames, tuple):
        yield frames
    elif hasattr(frames, "lengths"):
        yield from zip(frames.dma_addr.tolist(), frames.lengths.tolist(), strict=True)
    else:
        yield frames.dma_addr, len(frames)

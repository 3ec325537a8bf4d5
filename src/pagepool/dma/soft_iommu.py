# SPDX-License-Identifier: MIT
"""`SoftIommu`: an IOMMU in software that judges every access of a device, and every call of its driver.

The device in front of it is software too: the loopback NIC, or whatever reads and writes through `dma_read` and
`dma_write`. Errors and limits are VFIO's (`iova_table`), whose byte it is follows `ownership`, verdicts are values
(`findings`). It traps nothing the CPU does. Invariant: no dma_addr is a vaddr, and none is used twice, so that a
mistake never works by luck.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

from pagepool._core.params import DmaDir, MapGranularity
from pagepool.dma.access_judge import AccessJudge
from pagepool.dma.call_sites import user_call_sites
from pagepool.dma.cpu_memory import read_memory, write_memory
from pagepool.dma.finding_log import FindingLog
from pagepool.dma.findings import Finding, FindingKind, report_text
from pagepool.dma.iova_table import DMA_ENTRY_LIMIT, DMA_READ, DMA_WRITE, IovaMapping, IovaTable
from pagepool.dma.layer import unwrap
from pagepool.dma.page_names import arena_at, pools_of
from pagepool.errors import DeviceError, DmaFault

__all__ = ["SoftIommu"]

_FLAGS = {DmaDir.BIDIRECTIONAL: DMA_READ | DMA_WRITE, DmaDir.TO_DEVICE: DMA_READ, DmaDir.FROM_DEVICE: DMA_WRITE}
_DIRS = {flags: dma_dir for dma_dir, flags in _FLAGS.items()}


class SoftIommu:
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
        self.name = name
        self.granularity = MapGranularity.PAGE if strict else MapGranularity.SLAB
        self.needs_sync = check_syncs
        self.check_recycle = check_recycle
        self._lock = threading.RLock()
        self._table = IovaTable(entry_limit, memlock_bytes)
        self._log = FindingLog(self, collect=collect, max_findings=max_findings)
        self._judge = AccessJudge(self, self._table, self._log)
        self._closed = False

    # -- the driver's side: a DmaDevice --------------------------------------------------------------------------

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Map a range at an IOVA of the IOMMU's choice; it begins as the CPU's (see `ownership`).

        Raises
        ------
        DeviceError
            EINVAL, ENOSPC, EFAULT or ENOMEM, as VFIO.
        DmaFault
            It is mapped in this direction already. Several directions are no fault: pools of each share memory.
        """
        with self._lock:
            iova = self._table.allocate(size_bytes)
            new = self._new(iova, vaddr, size_bytes, _FLAGS.get(dma_dir, 0), self.needs_sync)
            for old in self._table.of_memory(vaddr, size_bytes):
                if old.dma_dir == dma_dir:
                    self._log.add(FindingKind.DOUBLE_MAP, f"map of vaddr {vaddr:#x} again", old.iova, size_bytes, old)
                    break
            self._table.add(new)
            return new.iova

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Undo `map`.

        Raises
        ------
        DeviceError
            EINVAL for part of a mapping.
        DmaFault
            It is not mapped (any more), or was mapped otherwise.
        """
        with self._lock:
            for one in self._table.overlapping(dma_addr, size_bytes):
                if (one.iova, one.size_bytes, one.dma_dir) != (dma_addr, size_bytes, dma_dir):
                    mapped = f"{one.size_bytes} bytes {one.dma_dir.name} at {one.iova:#x}"
                    what = f"unmap {DmaDir(dma_dir).name} of what was mapped as {mapped}"
                    self._log.add(FindingKind.MISMATCHED_UNMAP, what, dma_addr, size_bytes, one)
                elif one.has_syncs and self.check_recycle:
                    self._judge.must_be_read(one, 0, size_bytes, "unmap")
            if not self._remove(dma_addr, size_bytes):
                gone = self._table.was_mapped(dma_addr)
                kind = FindingKind.MISMATCHED_UNMAP if gone is None else FindingKind.DOUBLE_UNMAP
                what = "unmap of what was never mapped" if gone is None else "unmap again"
                self._log.add(kind, what, dma_addr, size_bytes, gone)

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

    # -- VFIO's own calls ----------------------------------------------------------------------------------------

    def map_iova(self, vaddr: int, iova: int, size_bytes: int, flags: int = DMA_READ | DMA_WRITE) -> None:
        """Map at an IOVA of the caller's choice, as ``VFIO_IOMMU_MAP_DMA`` does.

        Such a mapping is coherent: VFIO knows no syncs, and none are missed.

        Raises
        ------
        DeviceError
            EINVAL: unaligned, empty, no flags, or outside `IOVA_RANGES`; EEXIST: taken (also a finding); ENOSPC:
            `entry_limit` mappings; EFAULT: no memory; ENOMEM: beyond `memlock_bytes`.
        """
        with self._lock:
            try:
                self._table.add(self._new(iova, vaddr, size_bytes, flags, False))
            except DeviceError:
                if size_bytes > 0 and (old := self._table.overlapping(iova, size_bytes)):
                    with_it = f"map at iova {iova:#x}, which is taken"
                    self._log.add(FindingKind.DOUBLE_MAP, with_it, iova, size_bytes, old[0], quiet=True)
                raise

    def unmap_iova(self, iova: int, size_bytes: int) -> int:
        """Unmap every mapping in a range, as ``VFIO_IOMMU_UNMAP_DMA`` does.

        Returns
        -------
        int
            Bytes unmapped; 0 where nothing was mapped, which VFIO does not mind (what was unmapped before is a
            finding all the same, never an exception).

        Raises
        ------
        DeviceError
            EINVAL: unaligned, empty, or part of a mapping.
        """
        with self._lock:
            removed = self._remove(iova, size_bytes)
            gone = None if removed else self._table.was_mapped(iova)
            if gone is not None and (gone.iova, gone.size_bytes) == (iova, size_bytes):
                self._log.add(FindingKind.DOUBLE_UNMAP, "unmap again", iova, size_bytes, gone, quiet=True)
            return removed

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

    @property
    def nr_mappings(self) -> int:
        """Mappings that are alive."""
        with self._lock:
            return len(self._table)

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
        for arena in {id(one.arena): one.arena for one in self._table.mappings()}.values():
            if arena is not None:
                self._unmap_idle(arena)
        with self._lock:
            leaks = []
            for one in self._table.mappings():
                held = "" if one.arena is None else ", ".join(repr(pool) for pool in pools_of(self, one.arena))
                what = f"still mapped at the end{held and ' by ' + held}"
                kind = FindingKind.LEAKED_MAPPING
                leaks.append(self._log.add(kind, what, one.iova, one.size_bytes, one, quiet=True))
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

    def _new(self, iova: int, vaddr: int, size_bytes: int, flags: int, has_syncs: bool) -> IovaMapping:
        new = IovaMapping(iova, vaddr, size_bytes, flags, _DIRS.get(flags, DmaDir.NONE), user_call_sites())
        new.has_syncs = has_syncs
        found = arena_at(vaddr)
        if found is not None:
            new.arena, new.first_page = found
        return new

    def _remove(self, iova: int, size_bytes: int) -> int:
        removed = self._table.remove(iova, size_bytes)
        sites = user_call_sites()
        for one in removed:
            one.unmapped_at = sites
        return sum(one.size_bytes for one in removed)

    def _cpu_access(self, frames: Any, write: bool) -> None:
        what = "CPU write" if write else "CPU read"
        for dma_addr, size_bytes in _ranges(frames):
            with self._lock:
                one = self._judge.for_cpu(dma_addr, size_bytes, what)
                if one is not None and write:
                    one.ownership.cpu_will_write(dma_addr - one.iova, size_bytes, user_call_sites())

    def _unmap_idle(self, arena: Any) -> None:
        # Without our lock: the table of a pool's mappings has one of its own, and takes ours under it.
        pools = pools_of(self, arena)
        for key, dma_map in list(arena.dma_maps.items()):
            if unwrap(dma_map.dev) is self and not any(p.inflight for p in pools if p.dma_dir == dma_map.dma_dir):
                dma_map.unmap_all()
                if not pools:
                    arena.dma_maps.pop(key, None)

    def __repr__(self) -> str:
        return f"<SoftIommu {self.name}, {self.nr_mappings} mappings, {self.counts.total()} findings>"


def _ranges(frames: Any) -> Iterator[tuple[int, int]]:
    if isinstance(frames, tuple):
        yield frames
    elif hasattr(frames, "lengths"):
        yield from zip(frames.dma_addr.tolist(), frames.lengths.tolist(), strict=True)
    else:
        yield frames.dma_addr, len(frames)

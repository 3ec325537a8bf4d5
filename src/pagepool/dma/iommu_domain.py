# SPDX-License-Identifier: MIT
"""What is mapped for one device, who mapped it, and what is left over: the half of a software IOMMU that drivers call.

`map` and `unmap` are what pools use, `map_iova` and `unmap_iova` are VFIO's calls; one table is behind both. Accesses
are not known here (`soft_iommu`). Invariant: a mapping that is gone is remembered with the lines that unmapped it.
"""

from __future__ import annotations

import threading
from typing import Any

from pagepool._core.params import DmaDir, MapGranularity
from pagepool.dma.access_judge import AccessJudge
from pagepool.dma.call_sites import user_call_sites
from pagepool.dma.finding_log import FindingLog
from pagepool.dma.findings import Finding, FindingKind
from pagepool.dma.iova_table import DMA_READ, DMA_WRITE, IovaMapping, IovaTable
from pagepool.dma.layer import unwrap
from pagepool.dma.page_names import arena_at, pools_of
from pagepool.errors import DeviceError

__all__ = ["IommuDomain"]

_FLAGS = {DmaDir.BIDIRECTIONAL: DMA_READ | DMA_WRITE, DmaDir.TO_DEVICE: DMA_READ, DmaDir.FROM_DEVICE: DMA_WRITE}
_DIRS = {flags: dma_dir for dma_dir, flags in _FLAGS.items()}


class IommuDomain:
    """Base of `SoftIommu`; not for direct use. Parameters as there."""

    def __init__(
        self,
        *,
        strict: bool,
        collect: bool,
        check_syncs: bool,
        check_recycle: bool,
        entry_limit: int,
        memlock_bytes: int | None,
        max_findings: int,
    ) -> None:
        self.granularity = MapGranularity.PAGE if strict else MapGranularity.SLAB
        self.needs_sync = check_syncs
        self.check_recycle = check_recycle
        self._lock = threading.RLock()
        self._table = IovaTable(entry_limit, memlock_bytes)
        self._log = FindingLog(self, collect=collect, max_findings=max_findings)
        self._judge = AccessJudge(self, self._table, self._log)

    @property
    def nr_mappings(self) -> int:
        """Mappings that are alive."""
        with self._lock:
            return len(self._table)

    # -- the calls of a DmaDevice --------------------------------------------------------------------------------

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

    # -- the rest ------------------------------------------------------------------------------------------------

    def _leaks(self) -> list[Finding]:
        """Unmap what nobody uses any more, and report what is still mapped then."""
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
            return leaks

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

    def _unmap_idle(self, arena: Any) -> None:
        # Without our lock: the table of a pool's mappings has one of its own, and takes ours under it.
        pools = pools_of(self, arena)
        for key, dma_map in list(arena.dma_maps.items()):
            device: object = unwrap(dma_map.dev)
            if device is self and not any(p.inflight for p in pools if p.dma_dir == dma_map.dma_dir):
                dma_map.unmap_all()
                if not pools:
                    arena.dma_maps.pop(key, None)

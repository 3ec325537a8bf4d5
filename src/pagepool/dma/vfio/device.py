# SPDX-License-Identifier: MIT
"""`VfioDevice`: a PCI function behind an IOMMU as a device that pools map their pages for.

It joins an I/O address space, its mappings and one open function; registers and rings are a
driver's business. Invariant: what is mapped is exactly what `mappings` says, each mapping lies wholly in a
range that the IOMMU offers, and after `close` the device reaches nothing.
"""

from __future__ import annotations

import errno
import os
import warnings
from types import TracebackType
from typing import Literal, Self

from pagepool._core.params import DmaDir, MapGranularity
from pagepool.dma.vfio.abi import IommuInfo
from pagepool.dma.vfio.function import PciFunction
from pagepool.dma.vfio.iommufd import IommufdSpace, may_use_iommufd
from pagepool.dma.vfio.mappings import IoMappings
from pagepool.dma.vfio.space import IommuSpace
from pagepool.dma.vfio.sysfs import VFIO_DRIVER, PciSysfs
from pagepool.dma.vfio.type1 import Type1Space
from pagepool.errors import DeviceError

__all__ = ["VfioDevice"]


class VfioDevice:
    """Open a PCI function.

    Parameters
    ----------
    bdf : str
        Its place, ``"0000:01:00.0"``.
    strict : bool
        Map every page on its own when it enters a pool and unmap it when it leaves: the device reaches not a
        byte more than the pools hold. It costs two system calls a page on the slow path, and a container of
        type1 has 65535 mappings (``dma_entry_limit``), 256 MiB of single pages. By default a slab of 2 MiB is
        one mapping for ever.
    bind : bool
        Take the function from the kernel's driver, and give it back on `close`.
    iommu : {"auto", "type1", "iommufd"}
        Which interface of the kernel; ``auto`` is iommufd where the kernel has it and this user may open its
        files, else type1.
    share : VfioDevice, optional
        Another open device whose I/O address space to join: pages mapped for one are mapped for both, at the
        same dma_addr, so that frames are redirected between them without a copy. The interface is the other's,
        whatever `iommu` says.
    address_bits : int
        What the device can reach, if less than 64 bits.

    Raises
    ------
    DeviceError
        The text names the knob: driver_override, the IOMMU's kernel parameter, allow_unsafe_interrupts, ...
    ValueError
        `bdf` is no place on the bus.

    Attributes
    ----------
    bdf, name : str
        Place, and ``"vfio:"`` in front of it.
    pci : PciSysfs
        Ids, NUMA node, driver.
    function : PciFunction
        Registers, configuration space, reset.

    Notes
    -----
    Memory that is mapped is pinned and counts against RLIMIT_MEMLOCK: type1 counts for the process, iommufd for
    the user, over all of their processes and together with AF_XDP and io_uring; with CAP_IPC_LOCK neither has a
    limit. Prefer allocators of kind ``hugetlb``:
    one page pinned and one entry of the IOMMU's table per slab.

    A forked child does not have the device: `map` refuses there, `unmap` and `close` do nothing.

    Context: any thread.
    """

    needs_sync = False  # type1 refuses memory that is not coherent (VFIO_DMA_CC_IOMMU), and so does iommufd

    def __init__(
        self,
        bdf: str,
        *,
        strict: bool = False,
        bind: bool = False,
        iommu: Literal["auto", "type1", "iommufd"] = "auto",
        share: VfioDevice | None = None,
        address_bits: int = 64,
    ) -> None:
        self._closed = True  # until it is open, there is nothing to close
        if iommu not in ("auto", "type1", "iommufd"):
            raise ValueError(f"iommu {iommu!r}: it is auto, type1 or iommufd")
        self.pci = PciSysfs(bdf)
        self.bdf = self.pci.bdf
        self.name = f"vfio:{self.bdf}"
        self.granularity = MapGranularity.PAGE if strict else MapGranularity.SLAB
        self._pid = os.getpid()
        self._driver_before = self.pci.bind(VFIO_DRIVER) if bind else VFIO_DRIVER
        try:
            self.pci.require_vfio()
            self._mappings: IoMappings = _join(share) if share is not None else IoMappings(_open_space(self.pci, iommu))
            try:
                self.function = PciFunction(self._mappings.space.open_device(self.pci), self.bdf)
                try:
                    self._mappings.learn_ranges(address_bits)
                except BaseException:
                    self.function.close()
                    raise
            except BaseException:
                self._mappings.leave()
                raise
        except BaseException:
            self._give_back()
            raise
        self._closed = False

    # What a pool calls.

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Map memory at an iova of our choice; see `DmaDevice.map`.

        The direction binds the device: with ``TO_DEVICE`` it cannot write, with ``FROM_DEVICE`` not read
        (Linux 6.1 lets the devices of an Intel IOMMU read what they may write).
        """
        self._require_open("map memory for")
        return self._mappings.map(vaddr, size_bytes, DmaDir(dma_dir))

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Undo `map`; when this returns, the device's accesses fault. After `close` it does nothing."""
        if not self._closed and os.getpid() == self._pid:
            self._mappings.unmap(dma_addr, size_bytes)

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Do nothing: VFIO maps coherent memory only."""

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Do nothing: VFIO maps coherent memory only."""

    # What a person asks.

    @property
    def nid(self) -> int:
        """NUMA node the function is attached to, -1 for none: where its pools should be."""
        return self.pci.nid

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Ranges that the IOMMU offers, as (first, last)."""
        return self._mappings.iovas.ranges

    @property
    def mappings(self) -> dict[int, int]:
        """What is mapped now: iova -> bytes, in the whole space."""
        return self._mappings.mapped.copy()

    @property
    def iommu(self) -> str:
        """Which interface of the kernel it is: ``"type1 container"`` or ``"iommufd"``."""
        return self._mappings.space.name

    def info(self) -> IommuInfo:
        """Ask the IOMMU what it can do, and how many mappings are left."""
        self._require_open("ask the IOMMU of")
        return self._mappings.space.info()

    def shares_memory_with(self, other: object) -> bool:
        """Whether a dma_addr means the same to both devices."""
        return isinstance(other, VfioDevice) and other._mappings is self._mappings

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop the device's DMA, unmap, close, and give the function back to its driver. Idempotent.

        Pages of pools stay valid memory; only the device does not reach them any more.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self.function.close()
        self._mappings.leave()
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and os.getpid() == self._pid:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=1, source=self)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._mappings.mapped)} mappings, {self.iommu}"
        return f"<VfioDevice {self.bdf}: {state}>"

    def _require_open(self, call: str) -> None:
        if self._closed or os.getpid() != self._pid:
            what = "it is closed" if self._closed else "a forked child does not have the device: open it here"
            raise DeviceError(errno.EBADF, call, self.bdf, what)

    def _give_back(self) -> None:
        driver, self._driver_before = self._driver_before, VFIO_DRIVER
        if driver != VFIO_DRIVER:
            self.pci.give_back(driver)


def _join(device: VfioDevice) -> IoMappings:
    device._require_open("share the memory of")
    return device._mappings.join()


def _open_space(pci: PciSysfs, iommu: str) -> IommuSpace:
    if iommu == "iommufd" or (iommu == "auto" and may_use_iommufd(pci)):
        return IommufdSpace()
    return Type1Space()

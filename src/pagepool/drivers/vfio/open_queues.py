# SPDX-License-Identifier: MIT
"""From a place on the PCI bus to open queues: find the driver by the device's ids, and put the pieces together.

Invariant: it returns all queues, started, or raises and leaves the function with the driver that had it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Any, Literal

from pagepool.dma.vfio import PciSysfs, VfioDevice, functions
from pagepool.drivers.queue_group import QueueGroup
from pagepool.drivers.vfio.e1000e import E1000eNic
from pagepool.drivers.vfio.igb import IgbNic
from pagepool.drivers.vfio.nic import Nic
from pagepool.drivers.vfio.queue import VfioQueue
from pagepool.drivers.vfio.virtio_net import VirtioNetNic
from pagepool.errors import DeviceError
from pagepool.memory import MemoryKind, PageAllocator

__all__ = ["NIC_DRIVERS", "driver_of", "find_nics", "open_queues"]

NIC_DRIVERS: tuple[type[Nic], ...] = (IgbNic, E1000eNic, VirtioNetNic)


def driver_of(pci: PciSysfs) -> type[Nic] | None:
    """Return the driver for a function, by its PCI ids; None if there is none."""
    ids = (pci.vendor, pci.device)
    return next((driver for driver in NIC_DRIVERS if ids in driver.PCI_IDS), None)


def find_nics() -> list[tuple[PciSysfs, type[Nic]]]:
    """Return the machine's functions that a driver here knows, whoever has them now."""
    return [(pci, driver) for pci in functions() if (driver := driver_of(pci)) is not None]


def open_queues(
    bdf: str,
    queues: int = 1,
    *,
    bind: bool = False,
    strict: bool = False,
    iommu: Literal["auto", "type1", "iommufd"] = "auto",
    interrupts: bool = True,
    promiscuous: bool = True,
    ring_size: int = 256,
    memory: MemoryKind | str = MemoryKind.HUGETLB,
    pools: Sequence[Any] | None = None,
    stack: Any = None,
    link_seconds: float = 5.0,
    device: VfioDevice | None = None,
) -> QueueGroup[VfioQueue]:
    """Open a NIC and its queues, each with a pool of its own.

    Parameters
    ----------
    bdf : str
        Its place on the PCI bus, ``"0000:01:00.0"``.
    queues : int
        How many; flows are spread over them by RSS.
    bind : bool
        Take the NIC from the kernel's driver. Its network interface goes away until the last queue is closed.
    strict : bool
        Map page by page, see `VfioDevice`.
    iommu : {"auto", "type1", "iommufd"}
        Which interface of the kernel, see `VfioDevice`.
    interrupts : bool
        Let queues sleep when there are no frames; without, they are polled for ever.
    promiscuous : bool
        Receive frames for every Ethernet destination.
    ring_size : int
        Descriptors per ring, a power of two from 8 to 256.
    memory : MemoryKind or str
        What frames and rings are made of, on the NIC's NUMA node; stand-ins are taken where there is none.
    pools : sequence of PagePool, optional
        One per queue, mapped for `device`, instead of one that each queue makes for itself.
    stack : list, callable, PcapngWriter or None
        Where frames go that are passed up: there is no kernel stack behind the NIC.
    link_seconds : float
        How long to wait for a link; queues without one are open all the same.
    device : VfioDevice, optional
        The open device instead of one made here, for one that shares another's memory. It is closed with the
        last queue, or if this fails.

    Returns
    -------
    QueueGroup of VfioQueue
        A list, and a context manager that closes them all; the last to close turns the NIC off and gives it back.

    Raises
    ------
    DeviceError
        No driver here for the device (``ENODEV``, with the ids there are drivers for), or what VFIO refused.
    ValueError
        A number out of range.

    Notes
    -----
    Frames that come before the first poll wait in the rings. The caller's thread owns the pools until another
    thread polls.
    """
    driver = driver_of(PciSysfs(bdf))
    if driver is None:
        raise DeviceError(errno.ENODEV, "find driver for", _with_ids(PciSysfs(bdf)), f"there are {_known()}")
    if pools is not None and len(pools) != queues:
        raise ValueError(f"{len(pools)} pools for {queues} queues: give one per queue")
    device = device or VfioDevice(bdf, bind=bind, strict=strict, iommu=iommu)
    opened: QueueGroup[VfioQueue] = QueueGroup()
    nic: Nic | None = None
    try:
        allocator = PageAllocator(1 << 30, memory, device.nid)
        options = {"interrupts": interrupts, "promiscuous": promiscuous}
        nic = driver(device, allocator, nr_queues=queues, ring_size=ring_size, **options)
        for queue in range(queues):
            pool = None if pools is None else pools[queue]
            opened.append(VfioQueue(nic, queue, pool, memory=allocator, stack=stack))
        nic.start()
    except BaseException:
        if nic is not None:
            nic.halt()
            for made in opened:
                made.close()
            nic.close()
        device.close()
        raise
    deadline = time.monotonic() + link_seconds
    while not nic.is_link_up and time.monotonic() < deadline:
        time.sleep(0.01)
    return opened


def _with_ids(pci: PciSysfs) -> str:
    return f"{pci.bdf} ({pci.vendor:04x}:{pci.device:04x})"


def _known() -> str:
    return ", ".join(
        f"{driver.MODEL} {' '.join(f'{vendor:04x}:{device:04x}' for vendor, device in sorted(driver.PCI_IDS))}"
        for driver in NIC_DRIVERS
    )

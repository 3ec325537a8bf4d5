# SPDX-License-Identifier: MIT
"""Which knob to turn when VFIO says no: texts by step and errno, with the knob's present setting.

Words only: nothing is opened, mapped or changed here. Each entry was provoked on a real kernel, or stands in
its source (``drivers/vfio/vfio_iommu_type1.c``, ``drivers/iommu/iommufd``).
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

_MODULES = Path("/sys/module")


def hint(step: str, number: int) -> str:
    """Return what errno `number` means at `step`, and what to do; "" where there is no more to say.

    Parameters
    ----------
    step : str
        Name of the request (``"MAP_DMA"``), or ``"open container"``, ``"open group"``, ``"open iommufd"``,
        ``"find character device of"``, ``"open device"``, ``"bind"``.
    number : int
        The errno.
    """
    text = _HINTS.get((step, number), "")
    return text() if callable(text) else text


def memlock() -> str:
    """Say how much memory this process may lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return "the system is out of memory (RLIMIT_MEMLOCK is unlimited)"
    can = "" if hard == resource.RLIM_INFINITY else f" of at most {hard >> 10} KiB"
    return (
        f"RLIMIT_MEMLOCK is {soft >> 10} KiB{can}: what a device reaches is locked, huge pages too. Raise it "
        "(`ulimit -l`, LimitMEMLOCK= of a systemd unit), or give the process CAP_IPC_LOCK"
    )


def memlock_of_user() -> str:
    """Say how much memory this user may lock, as iommufd counts it."""
    text = memlock()
    return text if text.startswith("the system") else f"{text}. iommufd counts all processes of the user together"


def entry_limit() -> str:
    """Say how many mappings a container may have."""
    now = _parameter("vfio_iommu_type1", "dma_entry_limit", "65535")
    return (
        f"no mapping is left, dma_entry_limit is {now}: map slabs, not pages (strict=False), take iommu='iommufd', "
        "which has no such limit, or raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
    )


def unsafe_interrupts(module: str = "vfio_iommu_type1") -> str:
    """Say what makes an IOMMU without interrupt remapping acceptable to a kernel module."""
    return (
        "the IOMMU does not remap interrupts, so a device could forge them: turn interrupt remapping on "
        "(firmware; intel-iommu,intremap=on in QEMU), or accept it with "
        f"{module}.allow_unsafe_interrupts=1 (now {_parameter(module, 'allow_unsafe_interrupts', 'unknown')})"
    )


NO_IOMMU = (
    "the device has no IOMMU group: turn the IOMMU on in the firmware, and boot with intel_iommu=on (Intel; "
    "AMD's is on by default)"
)
NOT_BOUND = "bind it to vfio-pci: write vfio-pci to its driver_override, then its place to /sys/bus/pci/drivers_probe"
NO_IOMMUFD = "the kernel has no iommufd: modprobe iommufd, or one with CONFIG_IOMMUFD; or take iommu='type1'"
NOT_MINE = "is not this user's: chown it, or run as root"

_HINTS: dict[tuple[str, int], str | Callable[[], str]] = {
    ("open container", errno.ENOENT): "the kernel module is not loaded: modprobe vfio-pci",
    ("open container", errno.ENODEV): "the kernel module is not loaded: modprobe vfio-pci",
    ("open container", errno.EACCES): f"/dev/vfio/vfio {NOT_MINE}",
    ("open group", errno.ENOENT): f"no device of the group is with VFIO: {NOT_BOUND}",
    ("open group", errno.EACCES): f"the file of the group {NOT_MINE}",
    ("open group", errno.EPERM): f"the file of the group {NOT_MINE}",
    ("open group", errno.EBUSY): "the group is open already: one process, and one VfioDevice in it, may have it",
    ("open iommufd", errno.ENOENT): NO_IOMMUFD,
    ("open iommufd", errno.ENODEV): NO_IOMMUFD,
    ("open iommufd", errno.EACCES): f"/dev/iommu {NOT_MINE}; or take iommu='type1'",
    ("open device", errno.ENOENT): f"the device is not with VFIO: {NOT_BOUND}",
    ("find character device of", errno.ENODEV): (
        "the kernel makes no character devices of VFIO's: it needs CONFIG_VFIO_DEVICE_CDEV; or take iommu='type1'"
    ),
    ("open device", errno.EACCES): f"the file of the device {NOT_MINE}",
    ("bind", errno.EACCES): "only root may bind a device to another driver",
    ("bind", errno.EPERM): "only root may bind a device to another driver",
    ("bind", errno.ENODEV): f"vfio-pci did not take it: modprobe vfio-pci; {NO_IOMMU}",
    ("bind", errno.EINVAL): f"vfio-pci did not take it: {NO_IOMMU}",
    ("SET_IOMMU", errno.EPERM): unsafe_interrupts,
    ("SET_IOMMU", errno.ENODEV): "the kernel has no IOMMU of type1 v2: modprobe vfio_iommu_type1",
    ("SET_IOMMU", errno.EINVAL): "this container has its IOMMU already, or the group's IOMMU is of another kind",
    ("MAP_DMA", errno.ENOSPC): entry_limit,
    ("MAP_DMA", errno.ENOMEM): memlock,
    ("MAP_DMA", errno.EEXIST): "part of this iova range is mapped already; an iova has one mapping at a time",
    (
        "MAP_DMA",
        errno.EINVAL,
    ): "vaddr, iova and size must be multiples of the IOMMU's page, and the iovas lie wholly "
    "in one of its ranges (the interrupt window 0xfee00000 to 0xfeefffff is in none): see VfioDevice.iova_ranges",
    ("MAP_DMA", errno.EFAULT): "vaddr is not this process's memory, or may not be written",
    ("UNMAP_DMA", errno.EINVAL): "a mapping is undone whole, with the iova and size it was made with",
    ("IOAS_MAP", errno.ENOMEM): memlock_of_user,
    ("IOAS_MAP", errno.EEXIST): "part of this iova range is mapped already; an iova has one mapping at a time",
    (
        "IOAS_MAP",
        errno.EINVAL,
    ): "vaddr, iova and size must be multiples of the IOMMU's page, and the iovas lie wholly "
    "in one of its ranges: see VfioDevice.iova_ranges",
    ("IOAS_MAP", errno.EFAULT): "vaddr is not this process's memory, or may not be written",
    ("DEVICE_BIND_IOMMUFD", errno.EPERM): lambda: unsafe_interrupts("iommufd"),
    ("DEVICE_BIND_IOMMUFD", errno.EINVAL): (
        "the device is open already: one process, and one VfioDevice in it, may have it; or its DMA goes past the "
        "CPU's caches, which is not supported"
    ),
    (
        "DEVICE_BIND_IOMMUFD",
        errno.EBUSY,
    ): "the device's IOMMU group is open already: one process has all of it, by containers or by iommufd",
    ("DEVICE_ATTACH_IOMMUFD_PT", errno.EADDRINUSE): (
        "memory is mapped already where this device's IOMMU or interrupts are: open it first, and share= its space"
    ),
    ("DEVICE_RESET", errno.ENOTTY): "the device knows no reset of its own (no FLR)",
}


def _parameter(module: str, name: str, default: str) -> str:
    try:
        return (_MODULES / module / "parameters" / name).read_text().strip()
    except OSError:
        return default

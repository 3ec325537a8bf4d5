# SPDX-License-Identifier: MIT
"""Containers and groups: VFIO's first interface, with the IOMMU model called type1 v2.

An IOMMU group is the least that the hardware can tell apart; a container is an I/O address space with one or
more groups in it. Nothing of iovas is kept here. Invariant: the container has its IOMMU model from the first
group on, and a group whose devices the kernel still uses is never taken.

Source: ``Documentation/driver-api/vfio.rst``, "VFIO Usage Example".
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from pagepool.dma.vfio.abi import (
    DMA_MAP,
    DMA_UNMAP,
    GROUP_FLAGS_VIABLE,
    GROUP_STATUS,
    IOMMU_INFO,
    TYPE1V2_IOMMU,
    VFIO_API_VERSION,
    IommuInfo,
    MapFlag,
    Request,
    ioctl,
    unpack_iommu_info,
)
from pagepool.dma.vfio.hints import hint
from pagepool.dma.vfio.sysfs import PciSysfs
from pagepool.errors import DeviceError

__all__ = ["Type1Space"]

_INFO_BYTES = 4096  # more ranges than any IOMMU has


class Type1Space:
    """An I/O address space made of one container.

    Raises
    ------
    DeviceError
        ``/dev/vfio/vfio`` cannot be opened; the text says why.
    """

    name = "type1 container"

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}
        self._fd = _open("/dev/vfio/vfio", "open container")
        version = ioctl(self._fd, Request.GET_API_VERSION, 0, self.name)
        if version != VFIO_API_VERSION or not ioctl(self._fd, Request.CHECK_EXTENSION, TYPE1V2_IOMMU, self.name):
            self.close()
            needs = "a kernel with VFIO_IOMMU_TYPE1 (modprobe vfio_iommu_type1)"
            raise DeviceError(errno.ENOTTY, "find IOMMU type1 v2 in", "/dev/vfio/vfio", f"needs {needs}")

    def open_device(self, pci: PciSysfs) -> int:
        """See `IommuSpace.open_device`.

        Raises
        ------
        DeviceError
            ``EBUSY`` for a group that is not viable, with the functions that hold it back; else the kernel's
            refusal.
        """
        group = pci.iommu_group
        added = group not in self._groups
        if added:
            self._add(group, pci)
        try:
            # The name is passed by pointer, and the descriptor returned: fcntl.ioctl would take a copy of it.
            return _get_device_fd(self._groups[group], pci.bdf)
        except BaseException:
            if added:
                os.close(self._groups.pop(group))
            raise

    def _add(self, group: str, pci: PciSysfs) -> None:
        fd = _open(f"/dev/vfio/{group}", "open group")
        try:
            status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
            ioctl(fd, Request.GROUP_GET_STATUS, status, f"group {group}")
            if not GROUP_STATUS.unpack(status)[1] & GROUP_FLAGS_VIABLE:
                raise pci.not_viable()
            ioctl(fd, Request.GROUP_SET_CONTAINER, self._fd.to_bytes(4, "little"), f"group {group}")
            if not self._groups:
                ioctl(self._fd, Request.SET_IOMMU, TYPE1V2_IOMMU, f"type1 v2 for {pci.bdf}")
        except BaseException:
            os.close(fd)
            raise
        self._groups[group] = fd

    def info(self) -> IommuInfo:
        """See `IommuSpace.info`."""
        answer = bytearray(_INFO_BYTES)
        IOMMU_INFO.pack_into(answer, 0, _INFO_BYTES, 0, 0, 0, 0)
        ioctl(self._fd, Request.IOMMU_GET_INFO, answer, self.name)
        return unpack_iommu_info(answer)

    def map(self, vaddr: int, iova: int, size_bytes: int, *, readable: bool, writable: bool) -> None:
        """See `IommuSpace.map`."""
        flags = (MapFlag.READ if readable else MapFlag(0)) | (MapFlag.WRITE if writable else MapFlag(0))
        request = DMA_MAP.pack(DMA_MAP.size, flags, vaddr, iova, size_bytes)
        ioctl(self._fd, Request.MAP_DMA, request, f"vaddr {vaddr:#x} to iova {iova:#x}, {size_bytes} bytes")

    def unmap(self, iova: int, size_bytes: int) -> int:
        """See `IommuSpace.unmap`."""
        request = bytearray(DMA_UNMAP.pack(DMA_UNMAP.size, 0, iova, size_bytes))
        ioctl(self._fd, Request.UNMAP_DMA, request, f"iova {iova:#x}, {size_bytes} bytes")
        return int(DMA_UNMAP.unpack(request)[3])

    def close(self) -> None:
        """See `IommuSpace.close`."""
        while self._groups:
            os.close(self._groups.popitem()[1])
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: str, step: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.EIO
        raise DeviceError(number, step, path, hint(step, number)) from None


def _get_device_fd(group_fd: int, bdf: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    name = ctypes.create_string_buffer(bdf.encode())
    request = ctypes.c_ulong(Request.GROUP_GET_DEVICE_FD)
    fd = int(libc.ioctl(ctypes.c_int(group_fd), request, name))
    if fd < 0:
        number = ctypes.get_errno()
        raise DeviceError(number, "GROUP_GET_DEVICE_FD", bdf, hint("open device", number))
    flags = fcntl.fcntl(fd, fcntl.F_GETFD)
    fcntl.fcntl(fd, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    return fd

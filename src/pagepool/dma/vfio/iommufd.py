# SPDX-License-Identifier: MIT
"""iommufd: one character device per PCI function, and I/O address spaces as objects of their own.

The successor of `type1`, without containers and without ``dma_entry_limit``. Needs a kernel with IOMMUFD and
VFIO_DEVICE_CDEV; Debian's have neither, so the tests put both into one (``tests/vm/modules/iommufd``). Nothing of
iovas is kept here. Invariant: a function is in the space from the moment its file is handed out, and never in two.

Source: ``Documentation/userspace-api/iommufd.rst``, ``linux/iommufd.h``, and "VFIO Device cdev" in
``Documentation/driver-api/vfio.rst``.
"""

from __future__ import annotations

import ctypes
import errno
import os

from pagepool.dma.vfio.abi import (
    ATTACH_PT,
    BIND_IOMMUFD,
    IOAS_ALLOC,
    IOAS_IOVA_RANGES,
    IOAS_MAP,
    IOAS_UNMAP,
    IoasMapFlag,
    IommuInfo,
    Request,
    ioctl,
)
from pagepool.dma.vfio.hints import hint
from pagepool.dma.vfio.sysfs import PciSysfs
from pagepool.errors import DeviceError

__all__ = ["IommufdSpace", "may_use_iommufd"]

_PATH = "/dev/iommu"
_FIRST_GUESS = 16  # ranges; IOMMUs have two or three


def may_use_iommufd(pci: PciSysfs) -> bool:
    """Whether the kernel has iommufd and a character device for this function, and this user may open both."""
    cdev = pci.vfio_cdev
    if cdev is None:
        return False
    return all(os.access(path, os.R_OK | os.W_OK, effective_ids=True) for path in (_PATH, cdev))


class IommufdSpace:
    """An I/O address space of iommufd (an IOAS).

    Raises
    ------
    DeviceError
        ``/dev/iommu`` cannot be opened.
    """

    name = "iommufd"

    def __init__(self) -> None:
        self._fd = _open(_PATH, "open iommufd")
        try:
            answer = bytearray(IOAS_ALLOC.pack(IOAS_ALLOC.size, 0, 0))
            ioctl(self._fd, Request.IOAS_ALLOC, answer, _PATH)
        except BaseException:
            self.close()
            raise
        self._ioas_id: int = IOAS_ALLOC.unpack(answer)[2]

    def open_device(self, pci: PciSysfs) -> int:
        """See `IommuSpace.open_device`.

        Raises
        ------
        DeviceError
            ``ENODEV``: there is no character device for it. ``EBUSY``: something of its IOMMU group is in other
            hands. ``EINVAL``: it is open already. Else the kernel's refusal.
        """
        path = pci.vfio_cdev
        if path is None:
            step = "find character device of"
            raise DeviceError(errno.ENODEV, step, pci.bdf, hint(step, errno.ENODEV))
        fd = _open(path, "open device")
        try:
            self._bind(fd, pci)
            attach = bytearray(ATTACH_PT.pack(ATTACH_PT.size, 0, self._ioas_id))
            ioctl(fd, Request.DEVICE_ATTACH_IOMMUFD_PT, attach, pci.bdf)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _bind(self, fd: int, pci: PciSysfs) -> None:
        request = bytearray(BIND_IOMMUFD.pack(BIND_IOMMUFD.size, 0, self._fd, 0))
        try:
            ioctl(fd, Request.DEVICE_BIND_IOMMUFD, request, pci.bdf)
        except DeviceError as error:
            if error.errno == errno.EBUSY and pci.held_back_by:
                raise pci.not_viable() from None
            raise

    def info(self) -> IommuInfo:
        """See `IommuSpace.info`; the ranges are those that every device in the space can use.

        Of the page sizes there is the least alone: the kernel does not say what larger ones it makes of a mapping.
        """
        room = _FIRST_GUESS
        while True:
            pairs = (ctypes.c_uint64 * (2 * room))()
            request = bytearray(
                IOAS_IOVA_RANGES.pack(IOAS_IOVA_RANGES.size, self._ioas_id, room, 0, ctypes.addressof(pairs), 0)
            )
            try:
                ioctl(self._fd, Request.IOAS_IOVA_RANGES, request, self.name)
            except DeviceError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                room *= 4
                continue
            _, _, count, _, _, alignment = IOAS_IOVA_RANGES.unpack(request)
            return IommuInfo(max(alignment, 4096), [(pairs[2 * i], pairs[2 * i + 1]) for i in range(count)], None)

    def map(self, vaddr: int, iova: int, size_bytes: int, *, readable: bool, writable: bool) -> None:
        """See `IommuSpace.map`."""
        flags = IoasMapFlag.FIXED_IOVA
        flags |= IoasMapFlag.READABLE if readable else IoasMapFlag(0)
        flags |= IoasMapFlag.WRITEABLE if writable else IoasMapFlag(0)
        request = bytearray(IOAS_MAP.pack(IOAS_MAP.size, flags, self._ioas_id, 0, vaddr, size_bytes, iova))
        ioctl(self._fd, Request.IOAS_MAP, request, f"vaddr {vaddr:#x} to iova {iova:#x}, {size_bytes} bytes")

    def unmap(self, iova: int, size_bytes: int) -> int:
        """See `IommuSpace.unmap`; a part of a mapping is none, and stays mapped."""
        request = bytearray(IOAS_UNMAP.pack(IOAS_UNMAP.size, self._ioas_id, iova, size_bytes))
        try:
            ioctl(self._fd, Request.IOAS_UNMAP, request, f"iova {iova:#x}, {size_bytes} bytes")
        except DeviceError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        return int(IOAS_UNMAP.unpack(request)[3])

    def close(self) -> None:
        """See `IommuSpace.close`; the IOAS goes with its file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: str, step: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.EIO
        raise DeviceError(number, step, path, hint(step, number)) from None

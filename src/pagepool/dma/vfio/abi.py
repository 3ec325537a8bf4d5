# SPDX-License-Identifier: MIT
"""The kernel's interface to VFIO as numbers and structures; no behaviour but one funnel for ``ioctl``.

Source: ``linux/vfio.h`` and ``linux/iommufd.h``. VFIO's requests carry no size (``_IO``): the first field of a
structure, ``argsz``, is its length, and the kernel writes back how much it would have liked. Invariant: every
refusal leaves here as a `DeviceError` with the knob to turn.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from pagepool.dma.vfio.hints import hint
from pagepool.errors import DeviceError

_VFIO_BASE = (ord(";") << 8) + 100
_IOMMUFD_BASE = (ord(";") << 8) + 0x80


class Request(IntEnum):
    """``ioctl`` requests."""

    GET_API_VERSION = _VFIO_BASE + 0
    CHECK_EXTENSION = _VFIO_BASE + 1
    SET_IOMMU = _VFIO_BASE + 2
    GROUP_GET_STATUS = _VFIO_BASE + 3
    GROUP_SET_CONTAINER = _VFIO_BASE + 4
    GROUP_GET_DEVICE_FD = _VFIO_BASE + 6
    DEVICE_GET_INFO = _VFIO_BASE + 7
    DEVICE_GET_REGION_INFO = _VFIO_BASE + 8
    DEVICE_GET_IRQ_INFO = _VFIO_BASE + 9
    DEVICE_SET_IRQS = _VFIO_BASE + 10
    DEVICE_RESET = _VFIO_BASE + 11
    IOMMU_GET_INFO = _VFIO_BASE + 12
    MAP_DMA = _VFIO_BASE + 13
    UNMAP_DMA = _VFIO_BASE + 14
    DEVICE_BIND_IOMMUFD = _VFIO_BASE + 18
    DEVICE_ATTACH_IOMMUFD_PT = _VFIO_BASE + 19
    IOAS_ALLOC = _IOMMUFD_BASE + 1
    IOAS_IOVA_RANGES = _IOMMUFD_BASE + 4
    IOAS_MAP = _IOMMUFD_BASE + 5
    IOAS_UNMAP = _IOMMUFD_BASE + 6


VFIO_API_VERSION = 0
TYPE1V2_IOMMU = 3
GROUP_FLAGS_VIABLE = 1 << 0
CAP_IOVA_RANGES, CAP_DMA_AVAIL = 1, 3
CONFIG_REGION = 7


class MapFlag(IntFlag):
    """``VFIO_DMA_MAP_FLAG_*``: what the device may do."""

    READ = 1 << 0
    WRITE = 1 << 1


class IoasMapFlag(IntFlag):
    """``IOMMU_IOAS_MAP_*``: the same for iommufd."""

    FIXED_IOVA = 1 << 0
    WRITEABLE = 1 << 1
    READABLE = 1 << 2


class DeviceFlag(IntFlag):
    """``VFIO_DEVICE_FLAGS_*``."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlag(IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2


class IrqFlag(IntFlag):
    """``VFIO_IRQ_SET_*``: what kind of values follow, and what to do with them."""

    DATA_NONE = 1 << 0
    DATA_EVENTFD = 1 << 2
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


# argsz, flags, then what the name says; native order and size, no padding but what is written here.
GROUP_STATUS = struct.Struct("=II")
IOMMU_INFO = struct.Struct("=IIQII")  # pgsizes, cap_offset
CAP_HEADER = struct.Struct("=HHI")  # id, version, offset of the next one
IOVA_RANGE_COUNT = struct.Struct("=II")
IOVA_RANGE = struct.Struct("=QQ")  # first, last
DMA_MAP = struct.Struct("=IIQQQ")  # vaddr, iova, size
DMA_UNMAP = struct.Struct("=IIQQ")  # iova, size
DEVICE_INFO = struct.Struct("=IIIII")  # num_regions, num_irqs, cap_offset
REGION_INFO = struct.Struct("=IIIIQQ")  # index, cap_offset, size, offset
IRQ_INFO = struct.Struct("=IIII")  # index, count
IRQ_SET = struct.Struct("=IIIII")  # index, start, count, then the values
BIND_IOMMUFD = struct.Struct("=IIiI")  # iommufd, out_devid
ATTACH_PT = struct.Struct("=III")  # pt_id
IOAS_ALLOC = struct.Struct("=III")  # size, flags, out_ioas_id
IOAS_IOVA_RANGES = struct.Struct("=IIIIQQ")  # size, ioas_id, num_iovas, 0, allowed_iovas, out_iova_alignment
IOAS_MAP = struct.Struct("=IIIIQQQ")  # size, flags, ioas_id, 0, vaddr, length, iova
IOAS_UNMAP = struct.Struct("=IIQQ")  # size, ioas_id, iova, length


class IommuInfo(NamedTuple):
    """What the IOMMU can do.

    Attributes
    ----------
    page_sizes : int
        A bit for each size in bytes; the lowest is the granule.
    ranges : list of (first, last)
        iovas that may be mapped, both ends included; empty where the kernel does not say.
    mappings_left : int or None
        How many more mappings may be made, ``dma_entry_limit`` at first; None where the kernel does not say.
    """

    page_sizes: int
    ranges: list[tuple[int, int]]
    mappings_left: int | None


def unpack_iommu_info(answer: bytes | bytearray) -> IommuInfo:
    """Read ``struct vfio_iommu_type1_info`` and the capabilities chained behind it."""
    _, flags, page_sizes, at, _ = IOMMU_INFO.unpack_from(answer)
    ranges: list[tuple[int, int]] = []
    mappings_left = None
    at = at if flags & 2 else 0  # VFIO_IOMMU_INFO_CAPS
    while at:
        capability, _, following = CAP_HEADER.unpack_from(answer, at)
        body = at + CAP_HEADER.size
        if capability == CAP_IOVA_RANGES:
            count, _ = IOVA_RANGE_COUNT.unpack_from(answer, body)
            body += IOVA_RANGE_COUNT.size
            ranges = [IOVA_RANGE.unpack_from(answer, body + i * IOVA_RANGE.size) for i in range(count)]
        elif capability == CAP_DMA_AVAIL:
            (mappings_left,) = struct.unpack_from("=I", answer, body)
        at = following
    return IommuInfo(page_sizes if flags & 1 else 4096, ranges, mappings_left)


def pack_irq_set(flags: IrqFlag, index: int, start: int, eventfds: list[int], count: int) -> bytes:
    """Return ``struct vfio_irq_set``; without `eventfds` it carries no values for its `count` vectors."""
    values = struct.pack(f"={len(eventfds)}i", *eventfds)
    return IRQ_SET.pack(IRQ_SET.size + len(values), flags, index, start, count) + values


def ioctl(fd: int, request: Request, argument: bytes | bytearray | int, obj: str) -> int:
    """Make a request; a `bytearray` takes the answer.

    Returns
    -------
    int
        What the kernel returned, not negative.

    Raises
    ------
    DeviceError
        It refused; the text names `obj` and the knob to turn.

    Notes
    -----
    The GIL is released meanwhile.
    """
    try:
        if isinstance(argument, bytearray):
            return int(fcntl.ioctl(fd, request, argument, True))
        answer = fcntl.ioctl(fd, request, argument)
        return answer if isinstance(answer, int) else 0
    except OSError as error:
        number = error.errno or errno.EIO
        raise DeviceError(number, request.name, obj, hint(request.name, number)) from None

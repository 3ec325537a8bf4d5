# SPDX-License-Identifier: MIT
"""The mapping of one AF_XDP ring: where its indices and descriptors are.

It maps and unmaps and knows the vaddrs, nothing else; who reads or writes them in which order is
:mod:`._rings`. Python's own ``mmap`` is not used: it duplicates the descriptor, and a duplicate keeps the
queue busy after the socket's close.

Sources: Documentation/networking/af_xdp.rst, ``linux/if_xdp.h`` (``struct xdp_ring_offset``), mmap(2).
"""

from __future__ import annotations

import ctypes
import mmap as _mmap
from typing import NamedTuple

from pagepool._core.mapped_range import MappedRange
from pagepool.errors import DeviceError

__all__ = ["RingMap", "RingOffsets"]

_MAP_POPULATE = 0x8000
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


class RingOffsets(NamedTuple):
    """Byte offsets inside the mapping (``struct xdp_ring_offset``)."""

    producer: int
    consumer: int
    descriptors: int
    flags: int


class RingMap:
    """One mapped ring.

    Parameters
    ----------
    fd : int
        The socket; the mapping keeps the queue busy until :meth:`unmap`, even after the descriptor is closed.
    page_offset : int
        Which ring (``XDP_PGOFF_*``).
    offsets : RingOffsets
        Where its words are.
    nr_entries : int
        A power of two.
    entry_bytes : int
        16 for rx and tx descriptors, 8 for fill and completion.

    Attributes
    ----------
    producer, consumer, flags, descriptors : int
        vaddrs: three ``uint32_t`` and the array of entries.
    """

    def __init__(
        self, fd: int, page_offset: int, offsets: RingOffsets, nr_entries: int, entry_bytes: int, obj: str
    ) -> None:
        self.nr_entries = nr_entries
        self.entry_bytes = entry_bytes
        size_bytes = offsets.descriptors + nr_entries * entry_bytes
        protection = _mmap.PROT_READ | _mmap.PROT_WRITE
        vaddr = _libc.mmap(None, size_bytes, protection, _mmap.MAP_SHARED | _MAP_POPULATE, fd, page_offset)
        if vaddr in (None, _MAP_FAILED):
            raise DeviceError(ctypes.get_errno(), "mmap AF_XDP ring", obj)
        self._range: MappedRange | None = MappedRange(vaddr, size_bytes)
        self.producer = vaddr + offsets.producer
        self.consumer = vaddr + offsets.consumer
        self.flags = vaddr + offsets.flags
        self.descriptors = vaddr + offsets.descriptors

    def unmap(self) -> None:
        """Give the mapping back; the vaddrs are invalid from here on. Idempotent."""
        self._range = None

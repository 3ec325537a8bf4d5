# SPDX-License-Identifier: MIT
"""The UMEM of an AF_XDP socket as a DMA device: the whole arena is registered once, and stays so.

A UMEM is addressed by byte offset from its start, so ``dma_addr`` of page 0 is 0 and no table is needed; the
kernel pins and maps the memory itself and keeps it coherent. This file registers nothing: the driver says
how.

Source: Documentation/networking/af_xdp.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from pagepool._core.params import DmaDir, MapGranularity
from pagepool.errors import DeviceError

__all__ = ["UmemDevice"]


class UmemDevice:
    """The device side of one UMEM.

    Parameters
    ----------
    register : callable
        ``register(vaddr, size_bytes)`` makes the memory a socket's UMEM; called once, raises OSError.

    Notes
    -----
    Context: `map` by the thread that makes the queue; the rest does nothing.
    """

    name = "umem"
    granularity = MapGranularity.ARENA
    needs_sync = False

    def __init__(self, register: Callable[[int, int], None]) -> None:
        self._register: Callable[[int, int], None] | None = register
        self.size_bytes = 0

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Register the arena; returns 0, the offset of its first byte.

        Raises
        ------
        DeviceError
            The kernel's refusal, or EBUSY: a UMEM is registered once, and pools over it share one direction.
        """
        if self._register is None:
            raise DeviceError(
                errno.EBUSY, "register UMEM", self.name, "it is registered; use one dma_dir for all its pools"
            )
        self._register(vaddr, size_bytes)
        self._register = None  # the closure holds the first socket, which may go before the others
        self.size_bytes = size_bytes
        return 0

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Nothing: the kernel lets go of the memory with the last socket over it."""

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Nothing: the kernel has synced what it puts into the rx ring."""

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Nothing: the kernel syncs what it takes from the rings."""

    def __repr__(self) -> str:
        return f"<UmemDevice of {self.size_bytes >> 10} KiB>"

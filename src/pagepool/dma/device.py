# SPDX-License-Identifier: MIT
"""What a device must offer to a pool: map, unmap, and hand ranges over between CPU and device.

A protocol, not a base class: a device is whatever has these names. The pool calls it, a device never calls
the pool. ``dma_addr`` is on the device's side, ``vaddr`` on the CPU's; they may differ, and only the device
knows how.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pagepool._core.params import DmaDir, MapGranularity

__all__ = ["DmaDevice", "DmaDir", "MapGranularity"]


@runtime_checkable
class DmaDevice(Protocol):
    """A device that reads and writes memory by itself.

    Notes
    -----
    Context: `map` and `unmap` are called from any thread, on the slow path only, with the GIL and with no
    lock of the pool held. The two syncs are called for every page that changes hands, if `needs_sync` says
    so.

    A device whose `map` pins memory for a GPU may say so by one more attribute, ``dlpack_device``: DLPack's type and
    number, ``(3, 0)`` for CUDA, ``(11, 0)`` for ROCm. Tensors made of its pages name that device, layers pass it on.

    A device that judges may have ``cpu_access(dma_addr, size_bytes)``: pages and batches call it before they show bytes
    to the CPU. It may raise; then nothing is shown. Asked for once, when a pool or a queue is made.
    """

    @property
    def name(self) -> str:
        """A name for error texts and reports, ``"cuda:0"``."""

    @property
    def granularity(self) -> MapGranularity:
        """How much one `map` covers: the arena, a slab of 2 MiB, or one object of the pool."""

    @property
    def needs_sync(self) -> bool:
        """Whether the device's and the CPU's view may differ; constant for the life of the device."""

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Make a range of memory reachable for the device.

        Parameters
        ----------
        vaddr : int
            First byte, on the CPU's side; page aligned.
        size_bytes : int
            Length, a multiple of 4096.
        dma_dir : DmaDir
            Who will write.

        Returns
        -------
        int
            dma_addr of the first byte. The range is contiguous on the device's side too, until `unmap`.

        Raises
        ------
        OSError
            The range is not mapped.
        """

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Undo `map`, with what it returned and the same length and direction.

        Raises
        ------
        OSError
            The range is still mapped.
        """

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Let the CPU see what the device wrote to part of a mapped range."""

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Let the device see what the CPU wrote to part of a mapped range, and write to it again."""

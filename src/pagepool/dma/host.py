# SPDX-License-Identifier: MIT
"""The host itself as a device: the CPU reaches all memory, so mapping is the identity.

For sockets, files and tests. It keeps no books and checks nothing. Invariant: dma_addr == vaddr.
"""

from __future__ import annotations

from pagepool.dma.device import DmaDir, MapGranularity


class HostDevice:
    """Make a device that needs no mapping.

    Parameters
    ----------
    name : str
        For error texts and reports.
    granularity : MapGranularity
        How much a pool maps at a time; other than ``ARENA`` only to see a pool do it.
    needs_sync : bool
        Whether a pool calls the two syncs, which do nothing; ``True`` only to see a pool do it.

    Notes
    -----
    Context: any thread.
    """

    def __init__(
        self,
        name: str = "host",
        *,
        granularity: MapGranularity = MapGranularity.ARENA,
        needs_sync: bool = False,
    ) -> None:
        self.name = name
        self.granularity = granularity
        self.needs_sync = needs_sync

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Return `vaddr`."""
        return vaddr

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Do nothing."""

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Do nothing: memory is coherent."""

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Do nothing: memory is coherent."""

    def __repr__(self) -> str:
        return f"<HostDevice {self.name}>"

# SPDX-License-Identifier: MIT
"""One call on a device, as a value: what layers look at, count, keep and refuse."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pagepool.dma.device import DmaDir


class DmaOp(StrEnum):
    """The four calls of a `DmaDevice`."""

    MAP = "map"
    UNMAP = "unmap"
    SYNC_FOR_CPU = "sync_for_cpu"
    SYNC_FOR_DEVICE = "sync_for_device"


@dataclass(frozen=True, slots=True)
class DmaCall:
    """A call on a device.

    Attributes
    ----------
    op : DmaOp
        Which.
    vaddr : int or None
        First byte on the CPU's side; only `DmaOp.MAP` knows it.
    dma_addr : int or None
        First byte on the device's side; ``None`` for a map that has not succeeded.
    size_bytes : int
        Length.
    dma_dir : DmaDir
        Who writes.
    """

    op: DmaOp
    vaddr: int | None
    dma_addr: int | None
    size_bytes: int
    dma_dir: DmaDir

    def __str__(self) -> str:
        where = [] if self.vaddr is None else [f"vaddr {self.vaddr:#x}"]
        where += [] if self.dma_addr is None else [f"dma_addr {self.dma_addr:#x}"]
        return f"{self.op} {self.size_bytes} bytes {DmaDir(self.dma_dir).name} {', '.join(where)}"

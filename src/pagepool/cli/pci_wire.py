# SPDX-License-Identifier: MIT
"""A NIC that VFIO has: its queues are driven from this process, without the kernel's network stack.

The NIC must be bound to vfio-pci already; the command never takes one from the kernel by itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal, get_args

from pagepool.cli.failure import CannotError
from pagepool.cli.wire import Wire, WireOptions
from pagepool.drivers.rx_queue import RxQueue
from pagepool.drivers.vfio import VfioQueue, open_queues

__all__ = ["IOMMUS", "Iommu", "PciNic"]

Iommu = Literal["auto", "type1", "iommufd"]
IOMMUS: tuple[Iommu, ...] = get_args(Iommu)


class PciNic(Wire):
    """All queues of one NIC up to the highest asked for: receive-side scaling spreads flows over them."""

    def __init__(self, bdf: str, options: WireOptions, iommu: Iommu = "auto") -> None:
        if options.filters or options.program is not None:
            raise CannotError("--filter and --program need AF_XDP: behind --pci there is no program that could filter")
        super().__init__(options)
        self.bdf = bdf
        self.iommu: Iommu = iommu

    def _open(self, undo: ExitStack) -> None:
        try:
            queues = open_queues(self.bdf, max(self.options.queues) + 1, iommu=self.iommu)
        except ValueError as error:
            raise CannotError(f"--pci {self.bdf}: {error}") from None
        for queue in queues:
            undo.callback(queue.close)
        self.queues.extend(queues)

    @property
    def title(self) -> str:
        queue = self.queues[0]
        assert isinstance(queue, VfioQueue)
        return f"{self.bdf} by VFIO ({queue.nic.device.iommu}), {queue.nic.MODEL}"

    def look(self, queue: RxQueue) -> tuple[int, int]:
        assert isinstance(queue, VfioQueue)
        stats = queue.stats()
        return stats.rx_posted + stats.tx_posted, stats.rx_missed

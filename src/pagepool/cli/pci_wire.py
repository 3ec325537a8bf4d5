# SPDX-License-Identifier: MIT
"""A NIC that VFIO has: its queues are driven from this process, without the kernel's network stack.

The NIC must be bound to vfio-pci already; the command never takes one from the kernel by itself.
"""

from __future__ import annotations

from contextlib import ExitStack

from pagepool.cli.failure import CannotError
from pagepool.cli.wire import Wire, WireOptions
from pagepool.drivers.rx_queue import RxQueue
from pagepool.drivers.vfio import VfioQueue, open_queues

__all__ = ["PciNic"]


class PciNic(Wire):
    """All queues of one NIC up to the highest asked for: receive-side scaling spreads flows over them."""

    def __init__(self, bdf: str, options: WireOptions) -> None:
        if options.filter != "all" or options.program is not None:
            raise CannotError("--filter and --program need AF_XDP: behind --pci there is no program that could filter")
        super().__init__(options)
        self.bdf = bdf

    def _open(self, undo: ExitStack) -> None:
        try:
            queues = open_queues(self.bdf, max(self.options.queues) + 1)
        except ValueError as error:
            raise CannotError(f"--pci {self.bdf}: {error}") from None
        for queue in queues:
            undo.callback(queue.close)
        self.queues.extend(queues)

    @property
    def title(self) -> str:
        queue = self.queues[0]
        assert isinstance(queue, VfioQueue)
        return f"{self.bdf} by VFIO, {queue.nic.MODEL}"

    def look(self, queue: RxQueue) -> tuple[int, int]:
        assert isinstance(queue, VfioQueue)
        stats = queue.stats()
        return stats.rx_posted + stats.tx_posted, stats.rx_missed

# SPDX-License-Identifier: MIT
"""A layer that counts what a pool asks of a device. It keeps numbers only, no calls (that is `tracer`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pagepool.dma.call import DmaCall, DmaOp
from pagepool.dma.device import DmaDevice
from pagepool.dma.layer import DmaLayer


@dataclass(frozen=True, slots=True)
class DmaCounts:
    """Calls that succeeded, and their bytes, since the layer was made.

    Attributes
    ----------
    maps, unmaps, syncs_for_cpu, syncs_for_device : int
        Calls.
    map_bytes, unmap_bytes, sync_for_cpu_bytes, sync_for_device_bytes : int
        Their lengths added up.
    failures : int
        Calls of any kind that raised.
    """

    maps: int = 0
    unmaps: int = 0
    syncs_for_cpu: int = 0
    syncs_for_device: int = 0
    map_bytes: int = 0
    unmap_bytes: int = 0
    sync_for_cpu_bytes: int = 0
    sync_for_device_bytes: int = 0
    failures: int = 0

    @property
    def mapped(self) -> int:
        """Mappings that are alive."""
        return self.maps - self.unmaps

    @property
    def mapped_bytes(self) -> int:
        """Length of the mappings that are alive."""
        return self.map_bytes - self.unmap_bytes

    @property
    def syncs(self) -> int:
        """Syncs in both directions."""
        return self.syncs_for_cpu + self.syncs_for_device

    @property
    def sync_bytes(self) -> int:
        """Bytes synced in both directions."""
        return self.sync_for_cpu_bytes + self.sync_for_device_bytes


class Counting(DmaLayer):
    """Count the calls on a device.

    >>> device = Counting(HostDevice())
    >>> device.map(0x1000, 4096, DmaDir.FROM_DEVICE)
    4096
    >>> device.counts.mapped_bytes
    4096
    """

    def __init__(self, inner: DmaDevice) -> None:
        super().__init__(inner)
        self._lock = threading.RLock()  # see DmaLayer: a page may die in here
        self._calls = dict.fromkeys(DmaOp, 0)
        self._bytes = dict.fromkeys(DmaOp, 0)
        self._failures = 0

    def after(self, call: DmaCall, error: Exception | None) -> None:
        """Count the call."""
        with self._lock:
            if error is not None:
                self._failures += 1
            else:
                self._calls[call.op] += 1
                self._bytes[call.op] += call.size_bytes

    @property
    def counts(self) -> DmaCounts:
        """The counts of this moment, consistent with each other."""
        with self._lock:
            calls, sizes = self._calls, self._bytes
            return DmaCounts(
                maps=calls[DmaOp.MAP],
                unmaps=calls[DmaOp.UNMAP],
                syncs_for_cpu=calls[DmaOp.SYNC_FOR_CPU],
                syncs_for_device=calls[DmaOp.SYNC_FOR_DEVICE],
                map_bytes=sizes[DmaOp.MAP],
                unmap_bytes=sizes[DmaOp.UNMAP],
                sync_for_cpu_bytes=sizes[DmaOp.SYNC_FOR_CPU],
                sync_for_device_bytes=sizes[DmaOp.SYNC_FOR_DEVICE],
                failures=self._failures,
            )

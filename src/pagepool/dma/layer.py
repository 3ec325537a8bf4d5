# SPDX-License-Identifier: MIT
"""A layer: a device in front of a device, that passes every call on and may look at it before and after.

Layers stack in any order, and the pool cannot tell. By itself a layer changes nothing: name, granularity,
dma_addr and errors are those of the device behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pagepool.dma.call import DmaCall, DmaOp
from pagepool.dma.device import DmaDevice, DmaDir, MapGranularity


class DmaLayer:
    """Stand in front of a device; override `before` or `after`.

    Parameters
    ----------
    inner : DmaDevice
        The device behind, a layer or the device proper.

    Notes
    -----
    Context: as for any device, calls may come from several threads at once, so the hooks must lock what they
    keep; with an ``RLock``, for the last reference to a page may go anywhere (a collection, or without a GIL a
    reference that another thread let go of), inside a hook too, and then the page is unmapped there and then.
    """

    def __init__(self, inner: DmaDevice) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """Name of the device behind."""
        return self.inner.name

    @property
    def granularity(self) -> MapGranularity:
        """Granularity of the device behind."""
        return self.inner.granularity

    @property
    def needs_sync(self) -> bool:
        """Whether the device behind needs syncs; if not, a pool makes none and the layer sees none."""
        return self.inner.needs_sync

    @property
    def cpu_access(self) -> Callable[[int, int], None] | None:
        """What the device behind wants to be told of the CPU's accesses by; ``None`` where it does not care."""
        return getattr(self.inner, "cpu_access", None)

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """What the device behind says of the memory that it has mapped; without a word, ``(1, 0)``: the CPU's."""
        return getattr(self.inner, "dlpack_device", (1, 0))

    def before(self, call: DmaCall) -> None:
        """Look at a call that is about to be passed on; an exception here keeps it from the device."""

    def after(self, call: DmaCall, error: Exception | None) -> None:
        """Look at a call that the device has answered, with the dma_addr of a map; `error` if it refused."""

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Pass a map on."""
        call = DmaCall(DmaOp.MAP, vaddr, None, size_bytes, dma_dir)
        self.before(call)
        try:
            dma_addr = self.inner.map(vaddr, size_bytes, dma_dir)
        except Exception as error:
            self.after(call, error)
            raise
        self.after(replace(call, dma_addr=dma_addr), None)
        return dma_addr

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Pass an unmap on."""
        self._pass_on(self.inner.unmap, DmaCall(DmaOp.UNMAP, None, dma_addr, size_bytes, dma_dir), dma_addr)

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Pass a sync on."""
        call = DmaCall(DmaOp.SYNC_FOR_CPU, None, dma_addr, size_bytes, dma_dir)
        self._pass_on(self.inner.sync_for_cpu, call, dma_addr)

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Pass a sync on."""
        call = DmaCall(DmaOp.SYNC_FOR_DEVICE, None, dma_addr, size_bytes, dma_dir)
        self._pass_on(self.inner.sync_for_device, call, dma_addr)

    def _pass_on(self, forward: Callable[[int, int, DmaDir], None], call: DmaCall, dma_addr: int) -> None:
        self.before(call)
        try:
            forward(dma_addr, call.size_bytes, call.dma_dir)
        except Exception as error:
            self.after(call, error)
            raise
        self.after(call, None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r}>"


def unwrap(device: DmaDevice) -> DmaDevice:
    """Return the device proper, behind all layers."""
    while isinstance(device, DmaLayer):
        device = device.inner
    return device

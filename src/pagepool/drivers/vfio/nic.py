# SPDX-License-Identifier: MIT
"""What a NIC's driver must offer to `VfioQueue`, and the part of it that is the same for every NIC.

Opening and closing in the right order, the memory of the rings, the interrupts; no register. Invariant: the
device is reset before it may issue DMA, and may not any more before a page it was given goes home.
"""

from __future__ import annotations

import platform
import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from pagepool.dma.vfio import Interrupts, VfioDevice
from pagepool.drivers.vfio.ring_memory import RingMemory, check_ring_size
from pagepool.errors import DeviceError, NotSupportedError
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["BUFFER_BYTES", "MAX_FRAME_BYTES", "MIN_FRAME_BYTES", "Nic", "RxRing", "TxRing"]

BUFFER_BYTES = 2048  # what a device may write to a page
MIN_FRAME_BYTES, MAX_FRAME_BYTES = 14, 1518  # without the checksum at the end, with one VLAN tag


class RxRing(Protocol):
    """The receive side of a queue; its owner calls it."""

    @property
    def errors(self) -> int:
        """Descriptors that came back damaged or impossible."""

    @property
    def alloc_failed(self) -> int:
        """Refills that the pool could not fill."""

    @property
    def nr_posted(self) -> int:
        """Pages that the device has."""

    def refill(self) -> None:
        """Post pages to the device."""

    def collect(self, budget: int) -> tuple[U32Array, U32Array] | None:
        """Return ids and lengths of frames, checked; the pages are the caller's."""

    def release(self) -> None:
        """Send every page home; the device is off."""


class TxRing(Protocol):
    """The transmit side of a queue; any thread calls it."""

    @property
    def nr_posted(self) -> int:
        """Pages that the device has, or has sent since the last look."""

    def post(self, pool: Any, ids: U32Array, dma_addrs: U64Array, lengths: U32Array) -> int:
        """Post frames; return how many found room. The device may wait for `ring_doorbell`."""

    def ring_doorbell(self) -> None:
        """Have the device send what is posted."""

    def put_sent(self) -> None:
        """Send the pages of sent frames home."""

    def release(self) -> None:
        """Send every page home; the device is off."""


class Nic(ABC):
    """One NIC, shared by its queues.

    Parameters
    ----------
    device : VfioDevice
        Open; the NIC closes it.
    memory : PageAllocator
        Where rings, and by default frames, are.
    nr_queues : int
    ring_size : int
        Descriptors of each ring, a power of two to 256.
    interrupts : bool
        Whether queues can sleep; without, they are polled for ever.
    promiscuous : bool
        Receive frames for every Ethernet destination, not only ours and broadcasts.

    Attributes
    ----------
    mac : bytes
        Ethernet station of the device, 6 bytes.

    Notes
    -----
    Context: opened and started by one thread; its queues are closed by any, also at once.
    """

    PCI_IDS: ClassVar[frozenset[tuple[int, int]]]
    MODEL: ClassVar[str]
    MAX_QUEUES: ClassVar[int] = 1

    mac: bytes = bytes(6)

    def __init__(
        self,
        device: VfioDevice,
        memory: Any,
        *,
        nr_queues: int = 1,
        ring_size: int = 256,
        interrupts: bool = True,
        promiscuous: bool = True,
    ) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            # Descriptors must be in memory before the doorbell rings; Python has no barrier to say so.
            raise NotSupportedError("drivers in Python", "x86-64, which keeps stores in order")
        if not 1 <= nr_queues <= self.MAX_QUEUES:
            raise ValueError(f"{nr_queues} queues: {self.MODEL} has 1 to {self.MAX_QUEUES} here")
        self.device = device
        self.name = device.bdf
        self.nr_queues = nr_queues
        self.ring_size = check_ring_size(ring_size)
        self.promiscuous = promiscuous
        self.rings = RingMemory(device, memory, device.nid)
        self.interrupts: Interrupts | None = None
        self._wants_interrupts = interrupts
        self._memory = memory
        self._users = self._unclosed = nr_queues
        self._lock = threading.Lock()
        try:
            if device.function.can_reset:
                device.function.reset()
            device.function.enable_bus_master()
            self._open()
            if interrupts:
                self.interrupts = self._open_interrupts()
        except BaseException:
            self.close()
            raise

    # What a driver adds.

    @abstractmethod
    def _open(self) -> None:
        """Bring the device into a known state, silent, and learn its `mac`."""

    @abstractmethod
    def _open_interrupts(self) -> Interrupts:
        """Turn the vectors on, vector `i` for queue `i`, all masked."""

    @abstractmethod
    def open_queue(self, queue: int, pool: Any, headroom: int) -> tuple[RxRing, TxRing]:
        """Make the rings of a queue and let the device have them."""

    @abstractmethod
    def start(self) -> None:
        """Let frames in and out; every queue is open and has buffers."""

    @abstractmethod
    def stop_queue(self, queue: int) -> None:
        """Stop the DMA of one queue; the others go on."""

    @abstractmethod
    def arm(self, queue: int) -> None:
        """Let the next frame of a queue raise its interrupt; a frame that is there already may, or may not."""

    def disarm(self, queue: int) -> None:  # noqa: B027 - most devices need nothing
        """Keep quiet while the queue is polled; nothing where the device does so by itself."""

    @property
    @abstractmethod
    def is_link_up(self) -> bool:
        """Whether there is somebody at the other end."""

    def read_missed(self, queue: int) -> int:
        """Return frames that found no buffer since the last call, where the device counts them."""
        return 0

    # The end.

    def put_queue(self, queue: int) -> None:
        """Take the queue out of service; the last one turns the device off. Then its pages may go home.

        Raises
        ------
        DeviceError
            It does not stop. The whole device is off then, and its pages may go home all the same.
        """
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.halt()
            return
        try:
            self.stop_queue(queue)
        except DeviceError:
            self.halt()
            raise

    def halt(self) -> None:
        """Stop all DMA, at the root: whatever the device's own registers say."""
        function = self.device.function
        if function.fd >= 0:
            function.disable_bus_master()
            try:
                if function.can_reset:
                    function.reset()
            except DeviceError:
                pass  # bus mastering is off: that is enough

    def close_if_unused(self) -> None:
        """Count a queue whose pages are all home; close with the last, whichever thread that is in."""
        with self._lock:
            self._unclosed -= 1
            last = self._unclosed == 0
        if last:
            self.close()

    def close(self) -> None:
        """Let go of the interrupts, the rings' memory and the device. Idempotent."""
        if self.interrupts is not None:
            self.interrupts.close()
        self.halt()
        self.rings.close()
        self.device.close()
        self._memory.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.nr_queues} queues>"

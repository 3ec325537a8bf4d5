# SPDX-License-Identifier: MIT
"""virtio-net, modern, over PCI: the NIC that a hypervisor offers, here kept behind the IOMMU.

One chapter in the order of the specification's "Device Initialization" (3.1): find the structures, reset,
acknowledge, agree on features, make the queues, go. One pair of queues; no offloads, no merged buffers.
Invariant: ``ACCESS_PLATFORM`` is agreed on, or the device is refused: without it, it would take our dma_addrs
for the machine's own and go round the IOMMU.

Sections are those of the OASIS "Virtual I/O Device (VIRTIO) Version 1.2".
"""

from __future__ import annotations

import errno
import threading
import time
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pagepool.dma.vfio import Interrupts, IrqKind, Registers
from pagepool.drivers.vfio.nic import BUFFER_BYTES, Nic
from pagepool.drivers.vfio.virtqueue import F_NEXT, SplitQueue, VirtioRx
from pagepool.errors import DeviceError, NotSupportedError
from pagepool.xdp.driver import U32Array, U64Array

__all__ = ["VirtioNetNic"]

# 4.1.4 PCI capabilities: vendor specific, each says where in which BAR a structure is.
PCI_VENDOR_SPECIFIC = 0x09
COMMON_CONFIG, NOTIFY_CONFIG, DEVICE_CONFIG = 1, 2, 4
# 4.1.4.3 Common configuration structure, and the widths of its fields.
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C  # 32
CONFIG_MSIX_VECTOR = 0x10  # 16
DEVICE_STATUS = 0x14  # 8
QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E  # 16
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30  # 64
NO_VECTOR = 0xFFFF
# 2.1 Device status field.
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
# 5.1.3 and 6: features, by bit.
F_MAC, F_STATUS, F_VERSION_1, F_ACCESS_PLATFORM = 1 << 5, 1 << 16, 1 << 32, 1 << 33
# 5.1.2 Queues, 5.1.4 device configuration, 5.1.6 the header in front of every frame.
RECEIVE, TRANSMIT = 0, 1
CONFIG_MAC, CONFIG_STATUS, STATUS_LINK_UP = 0, 6, 1
HEADER_BYTES = 12


class Structure(NamedTuple):
    """A structure of registers in a BAR."""

    registers: Registers
    at: int


class VirtioNetNic(Nic):
    """A modern virtio-net device; see `Nic`."""

    PCI_IDS: ClassVar = frozenset({(0x1AF4, 0x1041), (0x1AF4, 0x1000)})
    MODEL: ClassVar = "virtio-net"

    def _open(self) -> None:
        self._find_structures()
        self._set_status(0)  # 3.1.1: reset, and wait until it has happened (2.4.2)
        deadline = time.monotonic() + 5
        while self._status():
            if time.monotonic() > deadline:
                raise DeviceError(errno.ETIMEDOUT, "reset", self.name, "the device does not answer")
        self._set_status(ACKNOWLEDGE)
        self._set_status(ACKNOWLEDGE | DRIVER)
        self._negotiate()
        config, at = self._device
        if self.features & F_MAC:
            self.mac = bytes(config.read8(at + CONFIG_MAC + i) for i in range(6))
        common, at = self._common
        common.write16(at + CONFIG_MSIX_VECTOR, NO_VECTOR)

    def _find_structures(self) -> None:
        """4.1.4: walk the capabilities; the first of each kind counts."""
        function = self.device.function
        found: dict[int, Structure] = {}
        self._notify_multiplier = 0
        for capability, at in function.capabilities():
            kind, bar = function.read_config(at + 3, 1), function.read_config(at + 4, 1)
            if capability != PCI_VENDOR_SPECIFIC or kind in found or bar > 5:
                continue
            if kind in (COMMON_CONFIG, NOTIFY_CONFIG, DEVICE_CONFIG):
                found[kind] = Structure(function.bar(bar), function.read_config(at + 8, 4))
            if kind == NOTIFY_CONFIG:
                self._notify_multiplier = function.read_config(at + 16, 4)
        if found.keys() != {COMMON_CONFIG, NOTIFY_CONFIG, DEVICE_CONFIG}:
            raise NotSupportedError(f"virtio-net at {self.name}", "a modern device (disable-legacy=on in QEMU)")
        self._common, self._notify = found[COMMON_CONFIG], found[NOTIFY_CONFIG]
        self._device = found[DEVICE_CONFIG]

    def _negotiate(self) -> None:
        """3.1.1, steps 4 to 6: take what we know of what is offered; two features are not negotiable."""
        common, at = self._common
        offered = 0
        for half in (0, 1):
            common.write32(at + DEVICE_FEATURE_SELECT, half)
            offered |= common.read32(at + DEVICE_FEATURE) << (32 * half)
        if not offered & F_ACCESS_PLATFORM:
            needs = "ACCESS_PLATFORM, else it goes round the IOMMU (iommu_platform=on in QEMU)"
            raise NotSupportedError(f"virtio-net at {self.name}", needs)
        if not offered & F_VERSION_1:
            raise NotSupportedError(f"virtio-net at {self.name}", "VERSION_1 (disable-legacy=on in QEMU)")
        self.features = offered & (F_VERSION_1 | F_ACCESS_PLATFORM | F_MAC | F_STATUS)
        for half in (0, 1):
            common.write32(at + DRIVER_FEATURE_SELECT, half)
            common.write32(at + DRIVER_FEATURE, self.features >> (32 * half) & 0xFFFF_FFFF)
        self._set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not self._status() & FEATURES_OK:
            raise DeviceError(errno.EINVAL, "agree on features with", self.name, f"it refuses {self.features:#x}")

    def open_queue(self, queue: int, pool: Any, headroom: int) -> tuple[VirtioRx, VirtioTx]:
        """See `Nic.open_queue`; 4.1.5.1.3."""
        if headroom < HEADER_BYTES:
            raise ValueError(f"a headroom of {headroom} bytes: virtio-net puts {HEADER_BYTES} in front of a frame")
        receive, transmit = self._make_queue(RECEIVE, 1), self._make_queue(TRANSMIT, 2)
        self._receive = receive
        receive.suppress_interrupts(True)
        transmit.suppress_interrupts(True)
        rx = VirtioRx(
            receive,
            pool,
            self._notifier(RECEIVE),
            headroom=headroom,
            buffer_bytes=BUFFER_BYTES,
            header_bytes=HEADER_BYTES,
        )
        _, header = self.rings.page()
        return rx, VirtioTx(transmit, self._notifier(TRANSMIT), header)

    def _make_queue(self, index: int, chain: int) -> SplitQueue:
        common, at = self._common
        common.write16(at + QUEUE_SELECT, index)
        size = min(self.ring_size, common.read16(at + QUEUE_SIZE))
        if not size:
            raise DeviceError(errno.ENODEV, f"make queue {index} of", self.name, "the device has no such queue")
        common.write16(at + QUEUE_SIZE, size)
        queue = SplitQueue(self.rings, f"{self.name} queue {index}", size, chain)
        vector = 0 if index == RECEIVE and self._wants_interrupts else NO_VECTOR
        common.write16(at + QUEUE_MSIX_VECTOR, vector)
        common.write64(at + QUEUE_DESC, queue.table_dma_addr)
        common.write64(at + QUEUE_DRIVER, queue.avail_dma_addr)
        common.write64(at + QUEUE_DEVICE, queue.used_dma_addr)
        common.write16(at + QUEUE_ENABLE, 1)
        return queue

    def _notifier(self, index: int) -> Any:
        """4.1.5.2: a write of the queue's number, at a place of its own.

        Always, whatever ``VIRTQ_USED_F_NO_NOTIFY`` says: to trust it, the write of the index would have to be
        seen before the flag is read, and there is no barrier in Python.
        """
        common, at = self._common
        common.write16(at + QUEUE_SELECT, index)
        registers, base = self._notify
        place = base + common.read16(at + QUEUE_NOTIFY_OFF) * self._notify_multiplier

        def notify() -> None:
            if self._status_known & DRIVER_OK:  # 3.1.1: not before
                registers.write16(place, index)

        return notify

    def start(self) -> None:
        """See `Nic.start`; 3.1.1, step 8."""
        self._set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        self._notifier(RECEIVE)()

    def _open_interrupts(self) -> Interrupts:
        return Interrupts(self.device.function, 1, IrqKind.MSIX)

    def arm(self, queue: int) -> None:
        """See `Nic.arm`.

        The flag must reach the device before the ring is looked at again. The one full barrier that Python has
        is a lock: taking it is a locked instruction.
        """
        self._receive.suppress_interrupts(False)
        with self._lock:
            pass

    def disarm(self, queue: int) -> None:
        """See `Nic.disarm`."""
        self._receive.suppress_interrupts(True)

    def stop_queue(self, queue: int) -> None:
        """See `Nic.stop_queue`; there is one pair, and it stops with the device."""
        self._set_status(0)

    def halt(self) -> None:
        """See `Nic.halt`."""
        if self.device.function.fd >= 0 and hasattr(self, "_common"):
            self._set_status(0)
        super().halt()

    @property
    def is_link_up(self) -> bool:
        """See `Nic.is_link_up`; without F_STATUS it always is (5.1.4.2)."""
        config, at = self._device
        return not self.features & F_STATUS or bool(config.read16(at + CONFIG_STATUS) & STATUS_LINK_UP)

    def _status(self) -> int:
        common, at = self._common
        return common.read8(at + DEVICE_STATUS)

    def _set_status(self, value: int) -> None:
        common, at = self._common
        common.write8(at + DEVICE_STATUS, value)
        self._status_known = value


class VirtioTx:
    """The transmit side (5.1.6.2): a header that asks for nothing, then the frame.

    All frames share one header of zeros, so that nothing is written into a page that others may hold: each
    chain is a descriptor of the header, linked for good to one of a frame.

    Notes
    -----
    Context: any thread; one lock.
    """

    def __init__(self, queue: SplitQueue, notify: Any, header_dma_addr: int) -> None:
        self.queue = queue
        self._notify = notify
        self._told = 0
        self._lock = threading.Lock()
        table = queue.table
        table["dma_addr"][::2] = header_dma_addr
        table["length"][::2] = HEADER_BYTES
        table["flags"][::2] = F_NEXT
        table["next"][::2] = np.arange(1, queue.size, 2)

    @property
    def nr_posted(self) -> int:
        """Pages that the device has, or has read since the last look."""
        return self.queue.nr_offered

    def post(self, pool: Any, ids: U32Array, dma_addrs: U64Array, lengths: U32Array) -> int:
        """Offer frames of `pool`; return how many of the first found a free chain."""
        queue = self.queue
        with self._lock:
            self._put_sent()
            n = min(len(ids), queue.nr_free)
            chains = queue.take_free(n)
            queue.posted.hold(chains, pool, ids[:n])
            frames = chains * np.uint32(2) + np.uint32(1)
            queue.table["dma_addr"][frames] = dma_addrs[:n]
            queue.table["length"][frames] = lengths[:n]
            queue.offer(chains)
            return n

    def ring_doorbell(self) -> None:
        """Tell the device to look, if there is anything new."""
        if self._told != self.queue.offers:
            with self._lock:
                self._told = self.queue.offers
                self._notify()

    def put_sent(self) -> None:
        """Send the pages of frames home that the device has read."""
        if self.queue.nr_offered:
            with self._lock:
                self._put_sent()

    def _put_sent(self) -> None:
        chains, _ = self.queue.reap(self.queue.size)
        if len(chains):
            self.queue.posted.put(chains)

    def release(self) -> None:
        """Send every page home; the device must be off."""
        with self._lock:
            self.queue.release()

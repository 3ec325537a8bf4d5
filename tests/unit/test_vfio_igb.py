# SPDX-License-Identifier: MIT
"""The igb driver over a model of the 82576's queue enables: stricter than QEMU's, as the data sheet has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pagepool import DmaDir, PageAllocator, PagePool, PPFlag
from pagepool.dma import HostDevice
from pagepool.dma.vfio import Registers
from pagepool.drivers.vfio.igb import (
    CTRL,
    CTRL_RESET,
    DCTL,
    DCTL_ENABLE,
    MDIC,
    MDIC_READY,
    RCTL,
    RCTL_ENABLE,
    RECEIVE_STATION,
    RING_STRIDE,
    RX_RING,
    TCTL,
    TX_RING,
    IgbNic,
)
from pagepool.drivers.vfio.intel_rings import TAIL
from pagepool.errors import DeviceError

MAC = bytes.fromhex("525400123456")
SIZE = 64


class Model82576(Registers):
    """A queue's enable bit reads as 0, and its tail does not move, until its direction is on (8.10.10, 8.12.13)."""

    def __init__(self, *, broken_queue: int = -1) -> None:
        super().__init__(bytearray(0x10000))
        self.broken_queue = broken_queue
        super().write32(RECEIVE_STATION, int.from_bytes(MAC[:4], "little"))
        super().write32(RECEIVE_STATION + 4, int.from_bytes(MAC[4:], "little"))

    def read32(self, offset: int) -> int:
        value = super().read32(offset)
        for ring, control, enable in ((RX_RING, RCTL, RCTL_ENABLE), (TX_RING, TCTL, 1 << 1)):
            queue, register = divmod(offset - ring, RING_STRIDE)
            if 0 <= queue < 16 and register == DCTL:
                is_on = super().read32(control) & enable and queue != self.broken_queue
                return value if is_on else value & ~DCTL_ENABLE
        return value

    def write32(self, offset: int, value: int) -> None:
        queue, register = divmod(offset - RX_RING, RING_STRIDE)
        if 0 <= queue < 16 and register == TAIL and not self.read32(offset - TAIL + DCTL) & DCTL_ENABLE:
            return
        if offset == CTRL:
            value &= ~CTRL_RESET  # clears itself
        if offset == MDIC:
            value |= MDIC_READY
        super().write32(offset, value)


class FakeFunction:
    can_reset = False
    fd = 3

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def bar(self, index: int) -> Registers:
        return self._registers

    def enable_bus_master(self) -> None: ...

    def disable_bus_master(self) -> None: ...


class FakeDevice(HostDevice):
    nid, bdf = -1, "0000:01:00.0"

    def __init__(self, registers: Registers) -> None:
        super().__init__()
        self.function = FakeFunction(registers)

    def close(self) -> None: ...


@pytest.fixture
def memory() -> Iterator[PageAllocator]:
    with PageAllocator(16 << 20) as allocator:
        yield allocator


def test_buffers_reach_the_device_once_it_is_on(memory: PageAllocator) -> None:
    model = Model82576()
    device = FakeDevice(model)
    nic = IgbNic(device, memory, nr_queues=2, ring_size=SIZE, interrupts=False)  # type: ignore[arg-type]
    assert nic.mac == MAC
    pool = PagePool(flags=PPFlag.DMA_MAP, dev=device, dma_dir=DmaDir.BIDIRECTIONAL, memory=memory)
    opened = [nic.open_queue(queue, pool, 256) for queue in range(2)]
    for rx, _ in opened:
        rx.refill()
    tails = [model.read32(RX_RING + RING_STRIDE * queue + TAIL) for queue in range(2)]
    assert tails == [0, 0]  # refused: the queues are not on
    nic.start()
    for queue, (rx, _) in enumerate(opened):
        assert rx.nr_posted == SIZE - 1
        assert model.read32(RX_RING + RING_STRIDE * queue + TAIL) == SIZE - 1
    for rx, tx in opened:
        rx.release()
        tx.release()
    nic.rings.close()
    pool.check()
    pool.close()


def test_a_queue_that_does_not_come_up_is_named(memory: PageAllocator) -> None:
    device = FakeDevice(Model82576(broken_queue=1))
    nic = IgbNic(device, memory, nr_queues=2, ring_size=SIZE, interrupts=False)  # type: ignore[arg-type]
    pool = PagePool(flags=PPFlag.DMA_MAP, dev=device, dma_dir=DmaDir.BIDIRECTIONAL, memory=memory)
    opened = [nic.open_queue(queue, pool, 256) for queue in range(2)]
    with pytest.raises(DeviceError, match=r"enable transmit queue 1 of 0000:01:00\.0"):
        nic.start()
    for rx, tx in opened:
        rx.release()
        tx.release()
    nic.rings.close()
    pool.close()

# SPDX-License-Identifier: MIT
"""`VfioQueue` over a NIC whose registers are a bytearray: verdicts, interrupts, bad frames, the end."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pagepool import PageAllocator, PagePool, PPFlag
from pagepool.dma import Counting, HostDevice
from pagepool.dma.vfio import Registers
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.drivers.rx_queue import QueueClosedError
from pagepool.drivers.vfio import VfioQueue, driver_of
from pagepool.drivers.vfio.igb import RX_FORMAT, IgbNic, tx_word
from pagepool.drivers.vfio.intel_rings import TAIL, IntelRxRing, IntelTxRing
from pagepool.drivers.vfio.ring_memory import RingMemory, check_ring_size
from pagepool.errors import DeviceError

SIZE = 64


class FakeDevice(HostDevice):
    """A host device with the few more names of a `VfioDevice`."""

    nid = -1

    def shares_memory_with(self, other: object) -> bool:
        return False


class FakeInterrupts:
    """One eventfd."""

    def __init__(self) -> None:
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK)]

    def clear(self, vector: int) -> int:
        try:
            return os.eventfd_read(self.fds[vector])
        except BlockingIOError:
            return 0


class FakeNic:
    """A NIC with one pair of rings in which nothing moves by itself: `receive` and `send` are its hardware."""

    name = "fake"
    ring_size = SIZE

    def __init__(self, memory: PageAllocator) -> None:
        self.device = FakeDevice()
        self.rings = RingMemory(self.device, memory)
        self.interrupts: FakeInterrupts | None = FakeInterrupts()
        self.is_armed = False
        self.events: list[str] = []
        self.head = 0

    def open_queue(self, queue: int, pool: Any, headroom: int) -> tuple[IntelRxRing, IntelTxRing]:
        self.registers = [Registers(bytearray(64)), Registers(bytearray(64))]
        rx, tx = self.registers
        self.rx = IntelRxRing(self.rings, rx, 0, SIZE, pool, RX_FORMAT, headroom=headroom, buffer_bytes=2048)
        self.tx = IntelTxRing(self.rings, tx, 0, SIZE, tx_word)
        self.pool, self.headroom = pool, headroom
        return self.rx, self.tx

    def receive(self, *frames: bytes) -> None:
        """Frames come over the wire."""
        for frame in frames:
            assert self.head != self.registers[0].read32(TAIL), "no buffer"
            words = self.rx.words[self.head]
            at = int(words[0]) - self.pool.arena.base_vaddr
            np.asarray(self.memory_of())[at : at + len(frame)] = np.frombuffer(frame, np.uint8)
            words[1] = len(frame) << 32 | 3
            self.head = (self.head + 1) % SIZE
            if self.is_armed and self.interrupts:
                self.is_armed = False  # it masks itself
                os.eventfd_write(self.interrupts.fds[0], 1)

    def memory_of(self) -> np.ndarray:
        from pagepool.xdp import FrameMemory

        return FrameMemory(self.pool).flat

    def sent(self) -> list[bytes]:
        """Send what the doorbell has told of."""
        frames, tail = [], self.registers[1].read32(TAIL)
        while (at := len(self.done)) % SIZE != tail:
            where, word = (int(w) for w in self.tx.words[at % SIZE])
            where -= self.pool.arena.base_vaddr
            frames.append(self.memory_of()[where : where + (word & 0xFFFF)].tobytes())
            self.tx.words[at % SIZE, 1] |= np.uint64(1 << 32)
            self.done.append(at)
        return frames

    @property
    def done(self) -> list[int]:
        return self.__dict__.setdefault("_done", [])

    def arm(self, queue: int) -> None:
        self.is_armed = True
        self.events.append("arm")

    def disarm(self, queue: int) -> None:
        pass

    def read_missed(self, queue: int) -> int:
        return 7

    def put_queue(self, queue: int) -> None:
        self.events.append("off")
        assert self.pool.lent > 0  # the pages are still the device's

    def halt(self) -> None:
        self.events.append("halt")

    def close_if_unused(self) -> None:
        self.events.append("close")
        self.rings.close()


@pytest.fixture
def memory() -> Iterator[PageAllocator]:
    with PageAllocator(16 << 20) as allocator:
        yield allocator


@pytest.fixture
def opened(memory: PageAllocator) -> Iterator[tuple[FakeNic, VfioQueue, list[bytes]]]:
    nic, stack = FakeNic(memory), list[bytes]()
    queue = VfioQueue(nic, 0, memory=memory, stack=stack)  # type: ignore[arg-type]
    pool = queue.pool
    yield nic, queue, stack
    queue.close()
    assert nic.events[-2:] == ["off", "close"]
    pool.check()
    assert pool.lent == 0


def frame(i: int, size: int = 60) -> bytes:
    return bytes([i]) * size


def test_verdicts(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, stack = opened
    nic.receive(*(frame(i) for i in range(8)))
    with queue.poll() as batch:
        batch.headers(4)[:, 0] = 0xAB
        batch.tx([0, 1])
        batch.pass_([2, 3])
        batch.drop([4, 5])
        (kept,) = batch.keep([6])
    assert nic.sent() == [b"\xab" + frame(i)[1:] for i in (0, 1)]
    assert stack == [b"\xab" + frame(i)[1:] for i in (2, 3)]
    assert bytes(kept) == b"\xab" + frame(6)[1:]
    kept.put()
    assert queue.poll() is None
    stats = queue.stats()
    assert (stats.rx_frames, stats.rx_bytes, stats.tx_frames, stats.tx_bytes) == (8, 480, 2, 120)
    assert stats.rx_missed == 7
    assert (stats.rx_posted, stats.tx_posted) == (SIZE - 1 - 8, 0)
    assert stats.pool.lent == SIZE - 1 - 8 or stats.pool.lent == SIZE - 1


def test_many_rounds(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    for turn in range(100):
        frames = [frame(turn % 256, 60 + k) for k in range(11)]
        nic.receive(*frames)
        got = []
        while (batch := queue.poll(4)) is not None:
            with batch:
                batch.tx()
            got += nic.sent()
        assert got == frames
    assert queue.stats().pool.slow <= 4


def test_frames_that_cannot_be_sent(opened) -> None:  # type: ignore[no-untyped-def]
    """Too short or too long: taken, counted, dropped; those around them are sent."""
    nic, queue, _ = opened
    nic.receive(*(frame(i) for i in range(5)))
    with queue.poll() as batch:
        lengths = batch.lengths.copy()
        lengths[1], lengths[3] = 13, 1519
        assert queue.transmit(batch.ids, lengths, batch.offsets) == 5
        batch.mark_completed()
        queue._flush()
    assert [sent[0] for sent in nic.sent()] == [0, 2, 4]
    assert queue.stats().tx_errors == 2


def test_the_doorbell_is_rung_by_those_who_send(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    doorbell, untouched = nic.registers[1], 0xDEAD
    for turn, verdict in enumerate(("drop", "tx", "drop", "tx")):
        doorbell.write32(TAIL, untouched)
        nic.receive(frame(turn))
        with queue.poll() as batch:
            getattr(batch, verdict)()
        if verdict == "drop":
            assert doorbell.read32(TAIL) == untouched
        else:
            assert nic.sent() == [frame(turn)]


def test_full_ring_takes_some(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    for _ in range(4):
        nic.receive(*(frame(i) for i in range(20)))
        with queue.poll() as batch:
            batch.tx()
    figures = queue.stats()
    assert (figures.xdp["tx"], figures.xdp["tx_dropped"], figures.tx_frames) == (80, 80 - (SIZE - 1), SIZE - 1)
    assert len(nic.sent()) == SIZE - 1


def test_interrupt_is_on_only_while_idle(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    assert queue.poll() is None
    assert queue.poll() is None
    assert nic.events == ["arm"]
    nic.receive(frame(1))
    assert len(queue.poll()) == 1
    assert queue.napi.is_scheduled  # a poll that found little is followed by one that finds nothing
    assert queue.poll() is None
    assert nic.events == ["arm", "arm"]


def test_frame_that_comes_while_arming(opened, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened

    def arm(number: int) -> None:
        nic.receive(frame(9))  # after the ring was seen empty, before the interrupt is on
        monkeypatch.undo()

    monkeypatch.setattr(nic, "arm", arm)
    assert len(queue.poll()) == 1


def test_run_wakes_up(opened) -> None:  # type: ignore[no-untyped-def]
    import threading
    import time

    nic, queue, _ = opened

    def wire() -> None:
        for i in range(20):
            time.sleep(0.002)
            nic.receive(frame(i), frame(i))

    thread = threading.Thread(target=wire)
    thread.start()
    seen = queue.run(lambda batch: batch.drop(), until=lambda: queue.stats().rx_frames == 40, seconds=20)
    thread.join()
    assert seen == 40
    assert queue.napi.stats.fd_events > 0


def test_redirect_from_a_pool_it_cannot_reach(opened, memory) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    with PagePool(flags=PPFlag.DMA_MAP, dev=FakeDevice("other"), memory=memory) as other:
        ids = np.asarray(other.alloc_bulk(2), np.uint32)
        lengths = np.full(2, 60, np.uint32)
        assert queue.xdp_xmit(other, ids, lengths, np.zeros(2, np.uint32)) == 0
        other.put_bulk(ids)
    with PagePool(flags=PPFlag.DMA_MAP, dev=Counting(nic.device), memory=memory) as layered:
        ids = np.asarray(layered.alloc_bulk(2), np.uint32)
        assert queue.xdp_xmit(layered, ids, lengths, np.zeros(2, np.uint32)) == 2
        nic.sent()
        queue.poll()
        assert layered.lent == 0


def test_a_queue_that_does_not_stop_keeps_no_page(memory) -> None:  # type: ignore[no-untyped-def]
    nic = FakeNic(memory)
    queue = VfioQueue(nic, 0, memory=memory)  # type: ignore[arg-type]
    pool = queue.pool
    stop = nic.put_queue

    def fail(number: int) -> None:
        stop(number)
        raise DeviceError(errno.ETIMEDOUT, "stop queue 0 of", nic.name, "the device does not answer")

    nic.put_queue = fail  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="does not answer"):
        queue.close()
    assert nic.events[-1] == "close"
    pool.check()
    assert pool.lent == 0


def test_closed(opened) -> None:  # type: ignore[no-untyped-def]
    nic, queue, _ = opened
    nic.receive(frame(1))
    batch = queue.poll()
    queue.close()
    with pytest.raises(QueueClosedError):
        queue.poll()
    assert batch._done


@pytest.mark.parametrize(
    "fields", [{"flags": PPFlag(0), "dev": None}, {"dev": FakeDevice("other")}, {"offset": 3000}], ids=str
)
def test_pools_that_will_not_do(memory, fields: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    nic = FakeNic(memory)
    settings = {"flags": PPFlag.DMA_MAP, "dev": nic.device, "memory": memory} | fields
    with PagePool(**settings) as pool, pytest.raises(ValueError, match=r"pool must be mapped|needs 2048 bytes"):
        VfioQueue(nic, 0, pool)  # type: ignore[arg-type]
    nic.rings.close()


@pytest.mark.parametrize("size", [0, 4, 100, 512, -8])
def test_ring_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="power of two from 8 to 256"):
        check_ring_size(size)


def test_without_interrupts(memory) -> None:  # type: ignore[no-untyped-def]
    nic = FakeNic(memory)
    nic.interrupts = None
    with VfioQueue(nic, 0, memory=memory) as queue:  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match="interrupts=False"):
            queue.fileno()
        assert queue.poll() is None
        assert queue.napi.is_scheduled


def test_driver_by_ids() -> None:
    class Pci:
        vendor, device = 0x8086, 0x10C9

    assert driver_of(Pci()) is IgbNic  # type: ignore[arg-type]
    Pci.device = 0x0001
    assert driver_of(Pci()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_nics_are_a_bridge_whose_threads_sleep_on_their_interrupts(memory: PageAllocator, threads: int) -> None:
    """Frames come one by one to sleeping threads, leave by the other NIC, and their pages come home."""
    nics = [FakeNic(memory), FakeNic(memory)]
    nics[1].device = nics[0].device  # one IOMMU domain: what one reaches, the other does
    queues = [VfioQueue(nic, 0, memory=memory) for nic in nics]  # type: ignore[arg-type]
    bridge = Bridge(queues[0], queues[1])
    with QueueThreads(bridge.queues, bridge.handlers, threads=threads) as running:
        deadline = time.monotonic() + 20
        for turn in range(40):
            while not all(nic.is_armed for nic in nics):  # asleep, or about to be
                assert time.monotonic() < deadline
                time.sleep(0.001)
            nics[turn % 2].receive(frame(turn))
            while running.frames <= turn:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert nics[1 - turn % 2].sent() == [frame(turn)]
    stats = bridge.stats()
    assert (stats.a_to_b.forwarded, stats.b_to_a.forwarded) == (20, 20)
    assert all(queue.napi.stats.fd_events > 0 for queue in queues)
    for queue in queues:
        queue.close()
        queue.pool.check()
        assert queue.pool.lent == 0

# SPDX-License-Identifier: MIT
"""The rings of the VFIO drivers with a test in the device's place: what it may not do, it does here."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from pagepool import DmaDir, PageAllocator, PagePool, PPFlag
from pagepool.dma import HostDevice
from pagepool.dma.vfio import Registers
from pagepool.drivers.vfio import e1000e, igb
from pagepool.drivers.vfio.intel_rings import TAIL, IntelRxRing, IntelTxRing, RxFormat
from pagepool.drivers.vfio.nvme_queue import COMMAND, NvmeQueue
from pagepool.drivers.vfio.posted_pages import PostedPages
from pagepool.drivers.vfio.ring_memory import RingMemory
from pagepool.drivers.vfio.virtqueue import DESCRIPTOR, SplitQueue, VirtioRx
from pagepool.errors import DeviceError

SIZE, HEADROOM, BUFFER = 16, 256, 2048
FORMATS = {"igb": igb.RX_FORMAT, "e1000e": e1000e.RX_FORMAT}


@pytest.fixture
def memory() -> Iterator[PageAllocator]:
    with PageAllocator(8 << 20) as allocator:
        yield allocator


def make_pool(memory: PageAllocator) -> PagePool:
    return PagePool(flags=PPFlag.DMA_MAP, dev=HostDevice(), dma_dir=DmaDir.BIDIRECTIONAL, memory=memory)


@pytest.fixture
def pool(memory: PageAllocator) -> Iterator[PagePool]:
    pool = make_pool(memory)
    yield pool
    pool.check()
    assert pool.lent == 0
    pool.close()


@pytest.fixture
def rings(memory: PageAllocator) -> Iterator[RingMemory]:
    rings = RingMemory(HostDevice(), memory)
    yield rings
    rings.close()


@pytest.fixture
def registers() -> Registers:
    return Registers(bytearray(0x100))


class Device:
    """Writes receive descriptors back, as hardware would, or as it must not."""

    def __init__(self, ring: IntelRxRing, format: RxFormat) -> None:
        self.ring, self.format, self.at = ring, format, 0

    def write_back(self, length: int, status: int = 3) -> None:
        word = status << self.format.status_shift | length << self.format.length_shift
        self.ring.words[self.at % SIZE, 1] = word
        self.at += 1


@pytest.fixture(params=FORMATS)
def rx(request, rings, registers, pool):  # type: ignore[no-untyped-def]
    format = FORMATS[request.param]
    ring = IntelRxRing(rings, registers, 0, SIZE, pool, format, headroom=HEADROOM, buffer_bytes=BUFFER)
    ring.refill()
    yield ring, Device(ring, format)
    ring.release()


def test_refill_leaves_one_descriptor_empty(rx, registers, pool) -> None:  # type: ignore[no-untyped-def]
    ring, _ = rx
    assert registers.read32(TAIL) == SIZE - 1
    assert pool.lent == SIZE - 1
    posted = ring.posted._ids[: SIZE - 1]
    assert (ring.words[: SIZE - 1, 0] == pool.arena.base_vaddr + (posted.astype(np.uint64) << 12) + HEADROOM).all()
    ring.refill()
    assert pool.lent == SIZE - 1


def test_frames_in_order_round_and_round(rx, registers, pool) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    for turn in range(40):
        ids = [int(ring.posted._ids[(device.at + k) % SIZE]) for k in range(3)]
        for k in range(3):
            device.write_back(100 + turn + k)
        assert ring.collect(0) is None
        got, lengths = ring.collect(64)
        assert (got.tolist(), lengths.tolist()) == (ids, [100 + turn + k for k in range(3)])
        assert ring.collect(64) is None
        pool.put_bulk(got)
        ring.refill()
    assert ring.errors == 0
    assert 8 <= (registers.read32(TAIL) - device.at) % SIZE < SIZE


def test_budget(rx, pool) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    for _ in range(10):
        device.write_back(60)
    sizes = []
    while (frames := ring.collect(4)) is not None:
        sizes.append(len(frames[0]))
        pool.put_bulk(frames[0])
    assert sizes == [4, 4, 2]


def test_gap_is_not_stepped_over(rx, pool) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    device.write_back(60)
    device.at += 1
    device.write_back(61)
    ids, lengths = ring.collect(64)
    assert lengths.tolist() == [60]
    assert ring.collect(64) is None
    pool.put_bulk(ids)


@pytest.mark.parametrize("length", [0, BUFFER + 1, 0xFFFF])
def test_impossible_lengths(rx, pool, length: int) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    for this in (60, length, 61):
        device.write_back(this)
    ids, lengths = ring.collect(64)
    assert (lengths.tolist(), ring.errors) == ([60, 61], 1)
    pool.put_bulk(ids)
    assert pool.lent == SIZE - 1 - 3


def test_damaged_frames(rx, pool) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    device.write_back(60, 3 | (1 << 31 if ring.format.status_shift == 0 else 1 << 8))
    assert ring.collect(64) is None
    assert ring.errors == 1


def test_frame_in_pieces_is_dropped_whole(rx, pool) -> None:  # type: ignore[no-untyped-def]
    ring, device = rx
    for length, status in ((60, 3), (2048, 1), (2048, 1)):
        device.write_back(length, status)
    ids, lengths = ring.collect(64)
    pool.put_bulk(ids)
    for length, status in ((100, 3), (61, 3)):  # its last piece, in the next poll, then a good one
        device.write_back(length, status)
    more, more_lengths = ring.collect(64)
    pool.put_bulk(more)
    assert (lengths.tolist(), more_lengths.tolist(), ring.errors) == ([60], [61], 3)


def test_sending_from_two_pools(rings, registers, memory, pool) -> None:  # type: ignore[no-untyped-def]
    other = make_pool(memory)
    ring = IntelTxRing(rings, registers, 0, SIZE, igb.tx_word)
    ours, theirs = np.asarray(pool.alloc_bulk(9), np.uint32), np.asarray(other.alloc_bulk(9), np.uint32)
    lengths = np.full(9, 60, np.uint32)
    assert ring.post(pool, ours, ours.astype(np.uint64) << np.uint64(12), lengths) == 9
    assert ring.post(other, theirs, theirs.astype(np.uint64) << np.uint64(12), lengths) == SIZE - 1 - 9
    other.put_bulk(theirs[SIZE - 1 - 9 :])
    ring.ring_doorbell()
    assert registers.read32(TAIL) == SIZE - 1
    assert not (ring.words[:, 1] >> np.uint64(32) & np.uint64(1)).any()
    ring.words[:11, 1] |= np.uint64(1 << 32)
    ring.put_sent()
    assert (pool.lent, other.lent) == (0, 4)
    ring.release()
    assert other.lent == 0
    other.check()
    other.close()


def test_transmit_words() -> None:
    assert int(igb.tx_word(np.array([60], np.uint64))[0]) == 60 << 46 | 0x2B30_0000 | 60
    assert int(e1000e.tx_word(np.array([60], np.uint64))[0]) == 0x0B00_0000 | 60


def test_posted_pages_of_many_pools(memory: PageAllocator) -> None:
    """More pools than numbers: those without a page here are forgotten."""

    class Pool:
        def __init__(self) -> None:
            self.home: list[int] = []

        def put_bulk(self, ids: np.ndarray) -> None:
            self.home += ids.tolist()

    posted, pools = PostedPages(4), [Pool() for _ in range(300)]
    for n, pool in enumerate(pools):
        slot = np.array([n % 4])
        posted.put(slot[posted.is_posted[slot]])
        posted.hold(slot, pool, np.array([n], np.uint32))
    posted.put_all()
    assert [pool.home for pool in pools] == [[n] for n in range(300)]


# A virtqueue, whose device says which buffers it has used.


class Virtio:
    """The device's end of a virtqueue."""

    def __init__(self, queue: SplitQueue) -> None:
        self.queue, self.used, self.seen = queue, 0, 0

    def offered(self) -> list[int]:
        queue = self.queue
        new = [int(queue._avail[2 + k % queue.size]) for k in range(self.seen, int(queue._avail[1]))]
        self.seen += len(new)
        return new

    def use(self, number: int, length: int) -> None:
        self.queue._used[self.used % self.queue.size] = length << 32 | number
        self.used += 1
        self.queue._used_head[1] = self.used & 0xFFFF


@pytest.fixture
def virtio(rings, pool):  # type: ignore[no-untyped-def]
    queue = SplitQueue(rings, "test", SIZE, 1)
    bells: list[int] = []
    rx = VirtioRx(queue, pool, lambda: bells.append(1), headroom=HEADROOM, buffer_bytes=BUFFER, header_bytes=12)
    rx.refill()
    assert bells == [1]
    yield rx, Virtio(queue)
    rx.release()


def test_virtio_layout() -> None:
    assert DESCRIPTOR.itemsize == 16
    assert [DESCRIPTOR.fields[name][1] for name in ("dma_addr", "length", "flags", "next")] == [0, 8, 12, 14]


def test_virtio_buffers_in_any_order(virtio, pool) -> None:  # type: ignore[no-untyped-def]
    rx, device = virtio
    for turn in range(30):
        numbers = device.offered()
        mine = numbers[::-1]
        ids = [int(rx.queue.posted._ids[number]) for number in mine]
        for k, number in enumerate(mine):
            device.use(number, 12 + 60 + k)
        got, lengths = rx.collect(64)
        assert (got.tolist(), lengths.tolist()) == (ids, [60 + k for k in range(len(mine))]), turn
        pool.put_bulk(got)
        rx.refill()
    assert rx.errors == 0


@pytest.mark.parametrize("number", [SIZE, 0xFFFF_FFFF, 3])
def test_virtio_uses_what_it_was_not_given(virtio, pool, number: int) -> None:  # type: ignore[no-untyped-def]
    rx, device = virtio
    device.use(3, 100)
    ids, _ = rx.collect(64)
    pool.put_bulk(ids)
    device.use(number, 100)
    device.use(4, 100)
    ids, lengths = rx.collect(64)
    assert (lengths.tolist(), rx.errors) == ([88], 1)
    pool.put_bulk(ids)


def test_virtio_uses_one_twice_at_once(virtio, pool) -> None:  # type: ignore[no-untyped-def]
    rx, device = virtio
    for number in (5, 5, 6):
        device.use(number, 100)
    ids, _ = rx.collect(64)
    assert (len(ids), len(set(ids.tolist())), rx.errors) == (2, 2, 1)
    pool.put_bulk(ids)


@pytest.mark.parametrize("length", [0, 12, BUFFER + 1, 0xFFFF_FFFF])
def test_virtio_impossible_lengths(virtio, pool, length: int) -> None:  # type: ignore[no-untyped-def]
    rx, device = virtio
    device.use(1, length)
    assert rx.collect(64) is None
    assert rx.errors == 1
    assert pool.lent == SIZE - 1


def test_virtio_claims_more_than_it_has(virtio) -> None:  # type: ignore[no-untyped-def]
    rx, _ = virtio
    rx.queue._used_head[1] = SIZE + 1
    with pytest.raises(DeviceError, match="was given 16 buffers and claims to have used 17") as refused:
        rx.collect(64)
    assert refused.value.errno == errno.EIO


# NVMe: completions by number, in any order.


class Controller:
    """The device's end of a pair of NVMe queues."""

    def __init__(self, queue: NvmeQueue) -> None:
        self.queue, self.at = queue, 0

    def complete(self, number: int, status: int = 0) -> None:
        phase = 1 - self.at // self.queue.depth % 2
        self.queue._completions[self.at % self.queue.depth, 1] = status << 49 | phase << 48 | number << 32
        self.at += 1


@pytest.fixture
def nvme(rings, registers):  # type: ignore[no-untyped-def]
    queue = NvmeQueue(rings, registers, "test", 1, 8, 0, 4)
    return queue, Controller(queue)


def test_nvme_command_layout() -> None:
    assert COMMAND.itemsize == 64
    assert [COMMAND.fields[name][1] for name in ("number", "namespace", "prp1", "prp2", "words")] == [2, 4, 24, 32, 40]


def test_nvme_completions_round_and_round(nvme, registers) -> None:  # type: ignore[no-untyped-def]
    queue, controller = nvme
    for _ in range(10):
        numbers = [queue.take_slot(0) for _ in range(5)]
        for number in numbers:
            queue.submit(number, 2, 1, (0x1000, 0), (7, 0, 7))
        for number in reversed(numbers):
            controller.complete(number)
        for number in numbers:
            queue.wait(number, 0)
    assert (registers.read32(0), registers.read32(4), queue.bad) == (50 % 8, 50 % 8, 0)


def test_nvme_refusals(nvme) -> None:  # type: ignore[no-untyped-def]
    queue, controller = nvme
    number = queue.take_slot(0)
    controller.complete(999)  # nobody asked
    controller.complete(number, 0x0102)
    controller.complete(number)  # twice
    with pytest.raises(DeviceError, match="type 0x1, code 0x02"):
        queue.wait(number, 0)
    queue.poll()
    assert queue.bad == 2
    with pytest.raises(DeviceError, match="no completion"):
        queue.wait(queue.take_slot(0), 0)
    for _ in range(6):
        queue.take_slot(0)
    with pytest.raises(DeviceError, match="7 commands are not waited for"):
        queue.take_slot(0)

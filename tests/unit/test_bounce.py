# SPDX-License-Identifier: MIT
"""A forgotten sync is stale data: behind a bounce buffer nothing moves by itself."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator

import pytest
from dma_doubles import TinyDriver, pool_on
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.dma import (
    Bounce,
    Counting,
    DmaDevice,
    DmaDir,
    FaultInjector,
    HostDevice,
    MapGranularity,
    SoftIommu,
    Tracer,
)
from pagepool.drivers.loopback import LoopbackQueue
from pagepool.errors import DeviceError

PAGE = 4096
INNER: dict[str, Callable[[], DmaDevice]] = {
    "host": HostDevice,
    "host by page": lambda: HostDevice(granularity=MapGranularity.PAGE),
    "soft iommu": lambda: SoftIommu(collect=True),
    "soft iommu by page": lambda: Tracer(SoftIommu(strict=True, collect=True)),
}


@pytest.fixture(params=list(INNER))
def bounce(request: pytest.FixtureRequest) -> Bounce:
    return Bounce(INNER[request.param]())


@pytest.fixture
def vaddr() -> Iterator[int]:
    """Eight pages of memory."""
    with mmap.mmap(-1, 8 * PAGE) as memory:
        window = ctypes.c_char.from_buffer(memory)
        yield ctypes.addressof(window)
        del window


def test_a_driver_that_syncs_gets_its_data(bounce: Bounce) -> None:
    with pool_on(bounce) as pool:
        driver = TinyDriver(pool)
        for number in range(300):
            driver.post()
            driver.nic.receive(bytes((number % 251,)) * 100)
            page, length = driver.collect()
            assert bytes(page[:length]) == bytes((number % 251,)) * 100
            page[:length] = b"reply" * 20
            assert driver.send(page, length) == b"reply" * 20
            pool.put_page(page, length)


def test_a_forgotten_sync_for_the_cpu_is_stale_data(bounce: Bounce) -> None:
    with pool_on(bounce) as pool:
        driver = TinyDriver(pool, "sync for cpu")
        pool.alloc_pages()[:3] = b"old"
        driver.post()  # the same page, recycled
        driver.nic.receive(b"new")
        page, _ = driver.collect()
        assert bytes(page[:3]) == b"old"
        pool.dma_sync_for_cpu(page, 0, 3)
        assert bytes(page[:3]) == b"new"
        page.put()


def test_a_forgotten_sync_for_the_device_is_stale_data(bounce: Bounce) -> None:
    with pool_on(bounce) as pool:
        driver = TinyDriver(pool, "sync for device")
        driver.post()
        driver.nic.receive(b"ping")
        page, length = driver.collect()
        page[:4] = b"pong"
        assert driver.send(page, length) == b"ping"
        driver.mistakes = ()
        assert driver.send(page, length) == b"pong"
        page.put()


def test_a_sync_that_is_too_short_is_stale_at_its_end(bounce: Bounce) -> None:
    with pool_on(bounce) as pool:
        driver = TinyDriver(pool, "sync for cpu")
        driver.post()
        driver.pages[0][:8] = b"--------"
        driver.nic.receive(b"12345678")
        page, _ = driver.collect()
        pool.dma_sync_for_cpu(page, 2, 3)
        assert bytes(page[:8]) == b"--345---"
        page.put()


def test_the_loopback_nic_works_through_a_bounce_buffer(bounce: Bounce) -> None:
    wire: list[bytes] = []
    frames = [bytes((number,)) * 80 for number in range(200)]
    with pool_on(bounce, offset=256, max_len=2048) as pool:
        with LoopbackQueue(frames, pool=pool, wire=wire) as queue:
            while batch := queue.poll():
                batch.headers(1)[:, 0] = 0xEE
                batch.tx()
        assert wire == [b"\xee" + frame[1:] for frame in frames]


def test_the_host_behind_it_maps_slabs_and_syncs() -> None:
    bounce = Bounce(HostDevice("nic0"))
    assert (bounce.name, bounce.granularity, bounce.needs_sync) == ("nic0", MapGranularity.SLAB, True)
    by_page = Bounce(HostDevice(granularity=MapGranularity.PAGE))
    assert by_page.granularity is MapGranularity.PAGE
    assert repr(bounce) == "<Bounce of <HostDevice nic0>>"


def test_the_device_gets_memory_of_its_own(vaddr: int) -> None:
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(vaddr, 2 * PAGE, DmaDir.BIDIRECTIONAL)
    assert not vaddr <= dma_addr < vaddr + 2 * PAGE
    ctypes.memset(vaddr, 7, 2 * PAGE)
    assert bounce.dma_read(dma_addr, 2) == b"\0\0"
    bounce.unmap(dma_addr, 2 * PAGE, DmaDir.BIDIRECTIONAL)


def test_a_map_keeps_what_the_device_does_not_write(vaddr: int) -> None:
    ctypes.memset(vaddr, 7, PAGE)
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(vaddr, PAGE, DmaDir.FROM_DEVICE)
    bounce.dma_write(dma_addr + 8, b"frame")
    bounce.sync_for_cpu(dma_addr, PAGE, DmaDir.FROM_DEVICE)
    assert ctypes.string_at(vaddr, 16) == b"\7" * 8 + b"frame" + b"\7" * 3


def test_a_sync_for_the_cpu_takes_nothing_from_a_device_that_only_reads(vaddr: int) -> None:
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(vaddr, PAGE, DmaDir.TO_DEVICE)
    ctypes.memset(vaddr, 7, 4)
    bounce.sync_for_cpu(dma_addr, PAGE, DmaDir.TO_DEVICE)
    assert ctypes.string_at(vaddr, 4) == b"\7" * 4


@pytest.mark.parametrize("call", ["dma_read", "dma_write", "sync_for_cpu", "sync_for_device"])
@pytest.mark.parametrize(("offset", "size_bytes"), [(-1, 4), (PAGE - 2, 4), (PAGE, 1), (1 << 40, 1)])
def test_what_is_not_mapped_is_efault(vaddr: int, call: str, offset: int, size_bytes: int) -> None:
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(vaddr, PAGE, DmaDir.BIDIRECTIONAL) + offset
    arguments = {"dma_read": (size_bytes,), "dma_write": (bytes(size_bytes),)}
    with pytest.raises(DeviceError) as refused:
        getattr(bounce, call)(dma_addr, *arguments.get(call, (size_bytes, DmaDir.BIDIRECTIONAL)))
    assert refused.value.errno == errno.EFAULT


@pytest.mark.parametrize(("bad_vaddr", "size_bytes"), [(0, PAGE), (PAGE, PAGE), (1 << 62, PAGE)])
def test_what_is_no_memory_cannot_be_mapped(bad_vaddr: int, size_bytes: int) -> None:
    with pytest.raises(DeviceError) as refused:
        Bounce(HostDevice()).map(bad_vaddr, size_bytes, DmaDir.BIDIRECTIONAL)
    assert refused.value.errno == errno.EFAULT


def test_memory_that_went_away_is_efault_and_no_crash() -> None:
    memory = mmap.mmap(-1, PAGE)
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(ctypes.addressof(ctypes.c_char.from_buffer(memory)), PAGE, DmaDir.BIDIRECTIONAL)
    memory.close()
    bounce.dma_write(dma_addr, b"the device's own memory is there")
    for sync in bounce.sync_for_cpu, bounce.sync_for_device:
        with pytest.raises(DeviceError, match="went away"):
            sync(dma_addr, 16, DmaDir.BIDIRECTIONAL)


def test_layers_count_and_refuse_behind_and_in_front(vaddr: int) -> None:
    inner = Counting(FaultInjector(HostDevice()))
    outer = Counting(Bounce(inner))
    dma_addr = outer.map(vaddr, PAGE, DmaDir.BIDIRECTIONAL)
    outer.sync_for_device(dma_addr, 100, DmaDir.BIDIRECTIONAL)
    outer.unmap(dma_addr, PAGE, DmaDir.BIDIRECTIONAL)
    assert inner.counts == outer.counts
    assert isinstance(inner.inner, FaultInjector)
    inner.inner.fail("map")
    with pytest.raises(OSError, match="injected"):
        outer.map(vaddr, PAGE, DmaDir.BIDIRECTIONAL)


def test_by_slab_and_by_page_give_the_same_bytes() -> None:
    sent: list[list[bytes]] = []
    for granularity in (MapGranularity.SLAB, MapGranularity.PAGE):
        device = Counting(Bounce(HostDevice(granularity=granularity)))
        wire: list[bytes] = []
        with pool_on(device) as pool:
            with LoopbackQueue([bytes((n,)) * 64 for n in range(250)], pool=pool, wire=wire) as queue:
                while batch := queue.poll():
                    batch.tx()
            held = pool.inflight
        assert device.counts.maps == device.counts.unmaps == (1 if granularity is MapGranularity.SLAB else held)
        sent.append(wire)
    assert sent[0] == sent[1]
    assert len(sent[0]) == 250


Ops = st.lists(
    st.tuples(
        st.sampled_from(["cpu", "device write", "device read", "for cpu", "for device"]),
        st.integers(0, 4 * PAGE - 1),
        st.integers(0, 2 * PAGE),
        st.integers(0, 255),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(Ops)
def test_two_memories_and_copies_between_them(ops: list[tuple[str, int, int, int]]) -> None:
    size_bytes = 4 * PAGE
    memory = mmap.mmap(-1, size_bytes)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    bounce = Bounce(HostDevice())
    dma_addr = bounce.map(vaddr, size_bytes, DmaDir.BIDIRECTIONAL)
    cpu, device = bytearray(size_bytes), bytearray(size_bytes)
    for op, at, n, value in ops:
        n = min(n, size_bytes - at)
        span = slice(at, at + n)
        if op == "cpu":
            cpu[span] = bytes((value,)) * n
            ctypes.memset(vaddr + at, value, n)
        elif op == "device write":
            device[span] = bytes((value,)) * n
            bounce.dma_write(dma_addr + at, bytes((value,)) * n)
        elif op == "device read":
            assert bounce.dma_read(dma_addr + at, n) == device[span]
        elif op == "for cpu":
            cpu[span] = device[span]
            bounce.sync_for_cpu(dma_addr + at, n, DmaDir.BIDIRECTIONAL)
        else:
            device[span] = cpu[span]
            bounce.sync_for_device(dma_addr + at, n, DmaDir.BIDIRECTIONAL)
        assert memory[:] == cpu
    assert bounce.dma_read(dma_addr, size_bytes) == device
    bounce.unmap(dma_addr, size_bytes, DmaDir.BIDIRECTIONAL)
    assert memory[:] == cpu

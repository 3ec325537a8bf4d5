# SPDX-License-Identifier: MIT
"""What every DmaDevice must do, device or layer: add a device to `DEVICES` and it is held to it."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator

import pytest

from pagepool.dma import (
    Bounce,
    Counting,
    DmaDevice,
    DmaDir,
    DmaLayer,
    FaultInjector,
    HostDevice,
    MapGranularity,
    SoftIommu,
    Tracer,
    unwrap,
)

PAGE = 4096
DIRECTIONS = [DmaDir.BIDIRECTIONAL, DmaDir.TO_DEVICE, DmaDir.FROM_DEVICE]
DEVICES: dict[str, Callable[[], DmaDevice]] = {
    "host": HostDevice,
    "host by slab": lambda: HostDevice("host:slab", granularity=MapGranularity.SLAB),
    "host by page, synced": lambda: HostDevice(granularity=MapGranularity.PAGE, needs_sync=True),
    "layer": lambda: DmaLayer(HostDevice()),
    "counting": lambda: Counting(HostDevice()),
    "tracer": lambda: Tracer(HostDevice()),
    "fault injector": lambda: FaultInjector(HostDevice()),
    "all layers": lambda: FaultInjector(Tracer(Counting(HostDevice(needs_sync=True)))),
    "soft iommu": SoftIommu,
    "soft iommu, strict": lambda: SoftIommu(strict=True),
    "soft iommu without syncs": lambda: SoftIommu(check_syncs=False),
    "soft iommu behind layers": lambda: Tracer(FaultInjector(Counting(SoftIommu()))),
    "bounce": lambda: Bounce(HostDevice()),
    "bounce of soft iommu": lambda: Counting(Bounce(Tracer(SoftIommu(strict=True)))),
}


@pytest.fixture(params=list(DEVICES))
def device(request: pytest.FixtureRequest) -> DmaDevice:
    return DEVICES[request.param]()


@pytest.fixture
def vaddr() -> Iterator[int]:
    """Sixteen pages of memory."""
    with mmap.mmap(-1, 16 * PAGE) as memory:
        window = ctypes.c_ubyte.from_buffer(memory)
        yield ctypes.addressof(window)
        del window


def test_is_a_device(device: DmaDevice) -> None:
    assert isinstance(device, DmaDevice)
    assert isinstance(device.name, str)
    assert device.name
    assert isinstance(device.granularity, MapGranularity)
    assert isinstance(device.needs_sync, bool)


@pytest.mark.parametrize("dma_dir", DIRECTIONS)
def test_maps_syncs_and_unmaps(device: DmaDevice, vaddr: int, dma_dir: DmaDir) -> None:
    dma_addr = device.map(vaddr, 16 * PAGE, dma_dir)
    assert isinstance(dma_addr, int)
    assert 0 <= dma_addr < 1 << 64
    assert dma_addr % PAGE == 0
    device.sync_for_device(dma_addr, 16 * PAGE, dma_dir)
    device.sync_for_cpu(dma_addr + PAGE + 64, 128, dma_dir)
    device.unmap(dma_addr, 16 * PAGE, dma_dir)


def test_maps_the_same_range_again(device: DmaDevice, vaddr: int) -> None:
    for _ in range(3):
        dma_addr = device.map(vaddr, PAGE, DmaDir.FROM_DEVICE)
        device.unmap(dma_addr, PAGE, DmaDir.FROM_DEVICE)


def test_ranges_do_not_overlap_on_the_devices_side(device: DmaDevice, vaddr: int) -> None:
    pages = [device.map(vaddr + i * PAGE, PAGE, DmaDir.FROM_DEVICE) for i in range(16)]
    assert len({dma_addr // PAGE for dma_addr in pages}) == 16
    for dma_addr in reversed(pages):
        device.unmap(dma_addr, PAGE, DmaDir.FROM_DEVICE)


def test_a_sync_loses_nothing(device: DmaDevice, vaddr: int) -> None:
    ctypes.memset(vaddr, 0x5A, PAGE)
    dma_addr = device.map(vaddr, PAGE, DmaDir.BIDIRECTIONAL)
    device.sync_for_device(dma_addr, PAGE, DmaDir.BIDIRECTIONAL)
    device.sync_for_cpu(dma_addr, PAGE, DmaDir.BIDIRECTIONAL)
    device.unmap(dma_addr, PAGE, DmaDir.BIDIRECTIONAL)
    assert ctypes.string_at(vaddr, PAGE) == b"\x5a" * PAGE


def test_threads_map_at_once(device: DmaDevice, vaddr: int) -> None:
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def map_and_unmap(page_vaddr: int) -> None:
        start.wait()
        try:
            for _ in range(50):
                dma_addr = device.map(page_vaddr, PAGE, DmaDir.FROM_DEVICE)
                device.sync_for_cpu(dma_addr, PAGE, DmaDir.FROM_DEVICE)
                device.unmap(dma_addr, PAGE, DmaDir.FROM_DEVICE)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=map_and_unmap, args=(vaddr + i * PAGE,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_layer_is_its_device_to_the_pool() -> None:
    proper = HostDevice("nic0", granularity=MapGranularity.SLAB, needs_sync=True)
    device = Counting(Tracer(FaultInjector(proper)))
    assert (device.name, device.granularity, device.needs_sync) == ("nic0", MapGranularity.SLAB, True)
    assert unwrap(device) is unwrap(proper) is proper
    assert repr(device) == "<Counting of <Tracer of <FaultInjector of <HostDevice nic0>>>>"


def test_the_host_reaches_memory_where_the_cpu_does(vaddr: int) -> None:
    assert HostDevice().map(vaddr, PAGE, DmaDir.FROM_DEVICE) == vaddr

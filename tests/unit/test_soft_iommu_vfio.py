# SPDX-License-Identifier: MIT
"""The low-level calls answer as VFIO's do on a machine with an Intel IOMMU: errno by errno, limit by limit."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator

import pytest
from dma_doubles import pool_on

from pagepool.dma import DMA_ENTRY_LIMIT, DMA_READ, DMA_WRITE, IOVA_RANGES, DmaDir, FindingKind, SoftIommu
from pagepool.errors import DeviceError

PAGE, MIB = 4096, 1 << 20
K = FindingKind


@pytest.fixture
def iommu() -> SoftIommu:
    return SoftIommu()


@pytest.fixture(scope="module")
def vaddr() -> Iterator[int]:
    """Four MiB of memory."""
    with mmap.mmap(-1, 4 * MIB) as memory:
        window = ctypes.c_char.from_buffer(memory)
        yield ctypes.addressof(window)
        del window


def test_maps_unmaps_and_counts_bytes(iommu: SoftIommu, vaddr: int) -> None:
    iommu.map_iova(vaddr, 0x10000, 2 * MIB)
    ctypes.memset(vaddr, 0x41, 4)
    assert iommu.dma_read(0x10000, 4) == b"AAAA"  # VFIO is coherent: no sync is missed
    iommu.dma_write(0x10002, b"BB")
    assert ctypes.string_at(vaddr, 4) == b"AABB"
    assert iommu.unmap_iova(0x10000, 2 * MIB) == 2 * MIB
    assert iommu.findings == ()


def test_the_same_iova_twice_is_eexist(iommu: SoftIommu, vaddr: int) -> None:
    iommu.map_iova(vaddr, 0x10000, 4 * PAGE)
    for iova, size_bytes in [(0x10000, 4 * PAGE), (0x13000, PAGE), (0xF000, 2 * PAGE), (0x0, MIB)]:
        with pytest.raises(DeviceError) as refused:
            iommu.map_iova(vaddr, iova, size_bytes)
        assert refused.value.errno == errno.EEXIST
    assert iommu.counts == {K.DOUBLE_MAP: 4}
    assert iommu.nr_mappings == 1


@pytest.mark.parametrize(
    ("iova", "size_bytes"),
    [
        (0x0, PAGE),
        (0x10000, PAGE),
        (0x10000 + 511 * PAGE, PAGE),
        (0x11000, 2 * MIB),
        (0x0, 0x11000),
    ],
)
def test_part_of_a_mapping_cannot_be_unmapped(iommu: SoftIommu, vaddr: int, iova: int, size_bytes: int) -> None:
    iommu.map_iova(vaddr, 0x10000, 2 * MIB)
    if iova + size_bytes <= 0x10000:
        assert iommu.unmap_iova(iova, size_bytes) == 0
        return
    with pytest.raises(DeviceError) as refused:
        iommu.unmap_iova(iova, size_bytes)
    assert refused.value.errno == errno.EINVAL
    assert iommu.nr_mappings == 1


def test_unmap_of_nothing_is_0_and_of_much_is_all_of_it(iommu: SoftIommu, vaddr: int) -> None:
    assert iommu.unmap_iova(0x10000, PAGE) == 0
    for i in range(10):
        iommu.map_iova(vaddr + i * PAGE, 0x10000 + 2 * i * PAGE, PAGE)
    assert iommu.unmap_iova(0, 1 << 30) == 10 * PAGE
    assert iommu.findings == ()
    assert iommu.unmap_iova(0x10000, PAGE) == 0  # VFIO does not mind; a driver may
    assert iommu.counts == {K.DOUBLE_UNMAP: 1}


@pytest.mark.parametrize(
    ("skew", "iova", "size_bytes", "flags"),
    [
        (1, 0x10000, PAGE, 3),
        (64, 0x10000, PAGE, 3),
        (0, 0x10001, PAGE, 3),
        (0, 0x10000, 100, 3),
        (0, 0x10000, 0, 3),
        (0, 0x10000, -PAGE, 3),
        (0, 0x10000, PAGE, 0),
        (0, 0x10000, PAGE, 4),
        (0, 0xFEE00000, PAGE, 3),
        (0, 0xFEEFF000, PAGE, 3),
        (0, 0xFEDFF000, 2 * PAGE, 3),
        (0, 0xFEEFF000, 2 * PAGE, 3),
        (0, 0x1000000000000, PAGE, 3),
        (0, 0xFFFFFFFFF000, 2 * PAGE, 3),
        (0, -PAGE, PAGE, 3),
    ],
)
def test_what_is_einval(iommu: SoftIommu, vaddr: int, skew: int, iova: int, size_bytes: int, flags: int) -> None:
    with pytest.raises(DeviceError) as refused:
        iommu.map_iova(vaddr + skew, iova, size_bytes, flags)
    assert refused.value.errno == errno.EINVAL
    assert (iommu.nr_mappings, iommu.findings) == (0, ())


def test_the_edges_of_the_ranges_can_be_mapped(iommu: SoftIommu, vaddr: int) -> None:
    assert IOVA_RANGES == ((0, 0xFEDFFFFF), (0xFEF00000, 0xFFFFFFFFFFFF))
    for iova in (0, 0xFEDFF000, 0xFEF00000, 0xFFFFFFFFF000):
        iommu.map_iova(vaddr, iova, PAGE)
        iommu.dma_write(iova, b"x")
    assert iommu.nr_mappings == 4


@pytest.mark.parametrize("bad", [(1, PAGE), (0x10000, 0), (0x10000, 100), (0x10000, -PAGE), (-PAGE, PAGE)])
def test_what_is_einval_to_unmap(iommu: SoftIommu, bad: tuple[int, int]) -> None:
    with pytest.raises(DeviceError) as refused:
        iommu.unmap_iova(*bad)
    assert refused.value.errno == errno.EINVAL


def test_mapping_65536_is_enospc(iommu: SoftIommu, vaddr: int) -> None:
    assert DMA_ENTRY_LIMIT == 65535
    for i in range(65535):
        iommu.map_iova(vaddr, i * PAGE, PAGE)
    with pytest.raises(DeviceError, match="dma_entry_limit") as refused:
        iommu.map_iova(vaddr, 65535 * PAGE, PAGE)
    assert refused.value.errno == errno.ENOSPC
    assert iommu.unmap_iova(0, PAGE) == PAGE
    iommu.map_iova(vaddr, 65535 * PAGE, PAGE)


def test_one_mapping_per_page_stops_a_pool_at_the_entry_limit() -> None:
    with SoftIommu(strict=True, entry_limit=200) as iommu, pool_on(iommu) as pool:
        pages = [pool.dev_alloc_pages() for _ in range(300)]
        assert sum(page is not None for page in pages) == iommu.nr_mappings == 200
        with pytest.raises(OSError, match="ENOSPC"):
            pool.alloc_pages()
        del pages
    with SoftIommu(entry_limit=1) as iommu, pool_on(iommu) as pool:
        pages = [pool.dev_alloc_pages() for _ in range(300)]
        assert all(page is not None for page in pages)
        del pages


def test_the_memlock_limit_is_enomem(vaddr: int) -> None:
    iommu = SoftIommu(memlock_bytes=64 << 10)
    for i in range(16):
        iommu.map_iova(vaddr + i * PAGE, i * PAGE, PAGE)
    with pytest.raises(DeviceError, match="RLIMIT_MEMLOCK") as refused:
        iommu.map_iova(vaddr, MIB, PAGE)
    assert refused.value.errno == errno.ENOMEM
    iommu.unmap_iova(0, PAGE)
    iommu.map_iova(vaddr, MIB, PAGE)
    with pytest.raises(OSError, match="ENOMEM"):
        iommu.map(vaddr, PAGE, DmaDir.TO_DEVICE)


def test_no_memory_is_efault(iommu: SoftIommu) -> None:
    for vaddr in (0, PAGE, (1 << 64) - PAGE):
        with pytest.raises(DeviceError) as refused:
            iommu.map_iova(vaddr, 0x10000, PAGE)
        assert refused.value.errno == errno.EFAULT


def test_flags_are_directions(vaddr: int) -> None:
    collecting = SoftIommu(collect=True)
    collecting.map_iova(vaddr, 0, PAGE, DMA_READ)
    collecting.map_iova(vaddr + PAGE, PAGE, PAGE, DMA_WRITE)
    collecting.dma_read(0, 1)
    collecting.dma_write(PAGE, b"x")
    assert collecting.findings == ()
    collecting.dma_write(0, b"x")
    collecting.dma_read(PAGE, 1)
    assert collecting.counts == {K.WRONG_DIRECTION: 2}


def test_two_neighbours_are_not_one_range(vaddr: int) -> None:
    collecting = SoftIommu(collect=True)
    collecting.map_iova(vaddr, 0, PAGE)
    collecting.map_iova(vaddr + 2 * PAGE, PAGE, PAGE)
    assert collecting.dma_read(PAGE - 4, 8) == b"\xff" * 8
    assert collecting.counts == {K.OUT_OF_RANGE: 1}
    collecting.dma_read(2 * PAGE - 8, 8)
    collecting.dma_read(2 * PAGE - 8, 9)
    assert collecting.counts == {K.OUT_OF_RANGE: 2}


def test_a_device_maps_as_its_driver_says_or_not_at_all(vaddr: int) -> None:
    iommu = SoftIommu()
    for bad in [(vaddr + 1, PAGE, DmaDir.TO_DEVICE), (vaddr, 100, DmaDir.TO_DEVICE), (vaddr, PAGE, DmaDir.NONE)]:
        with pytest.raises(DeviceError) as refused:
            iommu.map(*bad)
        assert refused.value.errno == errno.EINVAL


def test_part_of_a_mapping_is_einval_for_the_device_calls_too(vaddr: int) -> None:
    iommu = SoftIommu(collect=True)
    dma_addr = iommu.map(vaddr, 2 * PAGE, DmaDir.TO_DEVICE)
    with pytest.raises(DeviceError) as refused:
        iommu.unmap(dma_addr, PAGE, DmaDir.TO_DEVICE)
    assert refused.value.errno == errno.EINVAL
    assert iommu.counts == {K.MISMATCHED_UNMAP: 1}
    assert iommu.nr_mappings == 1
    iommu.unmap(0x5000, PAGE, DmaDir.TO_DEVICE)
    assert iommu.counts == {K.MISMATCHED_UNMAP: 2}

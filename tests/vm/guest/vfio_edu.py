# SPDX-License-Identifier: MIT
"""A device that copies memory (QEMU's ``edu``) against the IOMMU: what is mapped arrives, what is not does not.

Registers: QEMU's ``docs/specs/edu.rst``. A DMA takes it 100 ms and moves 4096 bytes at most.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pagepool import DmaDir, MemoryKind, PageAllocator, PagePool, PPFlag
from pagepool.dma import VfioDevice
from pagepool.dma.vfio import Interrupts, IrqKind
from pagepool.memory import huge_pages

from .support import host
from .support.plan import device
from .support.suite import cases, only_on

SLAB, PAGE = 2 << 20, 4096
IDENTIFICATION, LIVENESS, RAISE_IRQ, ACKNOWLEDGE_IRQ = 0x00, 0x04, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
START, FROM_EDU, BUFFER = 1, 2, 0x40000
BOTH = DmaDir.BIDIRECTIONAL


class Edu:
    """The device's DMA engine."""

    def __init__(self, dev: VfioDevice) -> None:
        self.registers = dev.function.bar(0)
        dev.function.enable_bus_master()

    def read_memory(self, dma_addr: int, size_bytes: int) -> None:
        """Have the device read memory into its buffer."""
        self._copy(dma_addr, BUFFER, size_bytes, START)

    def write_memory(self, dma_addr: int, size_bytes: int) -> None:
        """Have the device write its buffer to memory."""
        self._copy(BUFFER, dma_addr, size_bytes, START | FROM_EDU)

    def _copy(self, source: int, destination: int, size_bytes: int, command: int) -> None:
        for at, value in ((DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, size_bytes)):
            self.registers.write64(at, value)
        self.registers.write32(DMA_COMMAND, command)
        while self.registers.read32(DMA_COMMAND) & START:
            time.sleep(0.005)


@contextmanager
def edu_pool(strict: bool = False, **fields: object) -> Iterator[tuple[VfioDevice, Edu, PagePool]]:
    """Open the device and a pool that is mapped for it."""
    with (
        VfioDevice(device("edu").bdf, bind=True, strict=strict) as dev,
        PagePool(flags=PPFlag.DMA_MAP, dev=dev, **fields) as pool,  # type: ignore[arg-type]
    ):
        yield dev, Edu(dev), pool
        pool.check()


def reserve_huge_pages() -> None:
    """Have some, on whichever node."""
    if huge_pages.nr_hugepages() < 4:
        with open("/proc/sys/vm/nr_hugepages", "w") as knob:
            knob.write("8")


def test_registers() -> None:
    with VfioDevice(device("edu").bdf, bind=True) as dev:
        registers = dev.function.bar(0)
        registers.write32(LIVENESS, 0x12345678)
        assert registers.read32(IDENTIFICATION) & 0xFFFF == 0x00ED
        assert registers.read32(LIVENESS) == 0x12345678 ^ 0xFFFF_FFFF


@cases("hugetlb", "anonymous", "memfd", "thp", "memfd_hugetlb")
def test_copy_through_pool_pages(kind: str) -> None:
    """Memory -> device -> memory from one pool page to another, for every kind of memory."""
    reserve_huge_pages()
    with PageAllocator(64 << 20, MemoryKind(kind)) as memory, edu_pool(memory=memory) as (dev, edu, pool):
        assert kind in ("thp", "anonymous") or set(memory.got) == {MemoryKind(kind)}
        source, destination = pool.alloc_pages(), pool.alloc_pages()
        source[:2048] = content = os.urandom(2048)
        edu.read_memory(source.dma_addr, 2048)
        edu.write_memory(destination.dma_addr + 512, 2048)
        assert bytes(destination[512 : 512 + 2048]) == content
        assert len(dev.mappings) == 1
        source.put()
        destination.put()


def test_strict_pool_maps_page_by_page() -> None:
    with edu_pool(strict=True) as (dev, edu, pool):
        page = pool.alloc_pages()
        assert set(dev.mappings.values()) == {PAGE}
        page[:8] = b"strictly"
        edu.read_memory(page.dma_addr, 8)
        edu.write_memory(page.dma_addr + 100, 8)
        assert bytes(page[100:108]) == b"strictly"
        dma_addr, view = page.dma_addr, np.frombuffer(pool.memory.view(), np.uint8)
        where = page.vaddr - pool.arena.base_vaddr
        pool.release_page(page)  # leaves the pool: unmapped now
        assert dma_addr not in dev.mappings
        view[where : where + 8] = 0xAA
        before = host.iommu_faults()
        edu.write_memory(dma_addr, 8)
        assert host.iommu_faults() > before
        assert set(view[where : where + 8].tolist()) == {0xAA}
        del view


@cases("write", "read")
def test_refused_after_unmap(how: str) -> None:
    """The heart of it: after `unmap` returns the device reaches nothing, and QEMU counts each attempt."""
    with VfioDevice(device("edu").bdf, bind=True) as dev, PageAllocator(SLAB, commit=True) as memory:
        edu, view = Edu(dev), np.frombuffer(memory.view(), np.uint8)
        view[:64] = 0x11
        dma_addr = dev.map(memory.base_vaddr, SLAB, BOTH)
        edu.read_memory(dma_addr, 64)  # its buffer is 0x11 now
        dev.unmap(dma_addr, SLAB, BOTH)
        view[:64] = 0x22
        before = host.iommu_faults()
        if how == "write":
            edu.write_memory(dma_addr, 64)
            assert set(view[:64].tolist()) == {0x22}
        else:
            edu.read_memory(dma_addr, 64)
            again = dev.map(memory.base_vaddr, SLAB, BOTH)
            edu.write_memory(again + PAGE, 64)
            assert 0x22 not in view[PAGE : PAGE + 64].tolist()
        faults = host.iommu_faults() - before
        print(f"{faults} refused accesses")
        assert faults >= 1
        del view


@only_on("newest", "oldest")
def test_unmap_is_flushed_at_once() -> None:
    """The kernel invalidates the IOTLB within the unmap, not some time later."""
    with VfioDevice(device("edu").bdf, bind=True) as dev, PageAllocator(SLAB, commit=True) as memory:
        dma_addr = dev.map(memory.base_vaddr, SLAB, BOTH)
        before = host.iotlb_invalidations()
        dev.unmap(dma_addr, SLAB, BOTH)
        assert host.iotlb_invalidations() > before


def test_read_only_mapping_holds() -> None:
    """TO_DEVICE: the device's write faults, its read does not."""
    with VfioDevice(device("edu").bdf, bind=True) as dev, PageAllocator(SLAB, commit=True) as memory:
        edu, view = Edu(dev), np.frombuffer(memory.view(), np.uint8)
        view[:64] = 0x33
        read_only = dev.map(memory.base_vaddr, SLAB, DmaDir.TO_DEVICE)
        both = dev.map(memory.base_vaddr, SLAB, BOTH)
        before = host.iommu_faults()
        edu.read_memory(both, 64)
        view[:64] = 0x44
        edu.write_memory(read_only, 64)
        assert set(view[:64].tolist()) == {0x44}
        assert host.iommu_faults() > before
        edu.read_memory(read_only, 64)
        edu.write_memory(both + PAGE, 64)
        assert set(view[PAGE : PAGE + 64].tolist()) == {0x44}
        del view


@only_on("newest", "virtio_iommu")  # Linux 6.1 lets a VT-d device read whatever it may write
def test_write_only_mapping_holds() -> None:
    """FROM_DEVICE: the device's read faults and brings nothing."""
    with VfioDevice(device("edu").bdf, bind=True) as dev, PageAllocator(SLAB, commit=True) as memory:
        edu, view = Edu(dev), np.frombuffer(memory.view(), np.uint8)
        view[:64] = 0x33
        write_only = dev.map(memory.base_vaddr, SLAB, DmaDir.FROM_DEVICE)
        both = dev.map(memory.base_vaddr, SLAB, BOTH)
        before = host.iommu_faults()
        edu.read_memory(both + PAGE, 64)  # zeros
        edu.read_memory(write_only, 64)
        edu.write_memory(both + 2 * PAGE, 64)
        assert 0x33 not in view[2 * PAGE : 2 * PAGE + 64].tolist()
        assert host.iommu_faults() > before
        del view


def test_closed_device_reaches_nothing() -> None:
    """`close` with everything mapped: bus mastering is off and the mappings are gone."""
    with PageAllocator(SLAB, commit=True) as memory:
        view = np.frombuffer(memory.view(), np.uint8)
        dev = VfioDevice(device("edu").bdf, bind=True)
        dev.map(memory.base_vaddr, SLAB, BOTH)
        Edu(dev)
        dev.close()
        view[:64] = 0x55
        with VfioDevice(device("edu").bdf, bind=True) as again:
            assert again.mappings == {}
            assert not again.function.read_config(4) & 4
        assert set(view[:64].tolist()) == {0x55}
        del view


@cases("MSI", "INTX")
def test_interrupts_by_eventfd(name: str) -> None:
    with VfioDevice(device("edu").bdf, bind=True) as dev:
        edu = Edu(dev)
        interrupts = Interrupts(dev.function, 1, IrqKind[name])
        for value in (1, 2):
            assert interrupts.clear() == 0
            edu.registers.write32(RAISE_IRQ, value)
            assert select.select(interrupts.fds, [], [], 30)[0]
            edu.registers.write32(ACKNOWLEDGE_IRQ, value)
            assert interrupts.clear() >= 1
        interrupts.close()

# SPDX-License-Identifier: MIT
"""What VFIO refuses on a real kernel: each is a `DeviceError` that names the knob, and nothing is left behind."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

from pagepool import DmaDir, PageAllocator, PagePool, PPFlag
from pagepool.dma import VfioDevice
from pagepool.errors import DeviceError

from .support.pci import PciDevice
from .support.plan import device
from .support.suite import cases, only_on

EDU = "edu"
SLAB = 2 << 20
BOTH = DmaDir.BIDIRECTIONAL
UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
ENTRY_LIMIT = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")


def refusal(call: Callable[[], object]) -> DeviceError:
    """Return the DeviceError that `call` raises; it is an assertion error if it raises none."""
    try:
        call()
    except DeviceError as error:
        print(error)
        return error
    raise AssertionError("not refused")


def open_edu(**options: object) -> VfioDevice:
    """Open the edu device, taking it from whoever has it."""
    return VfioDevice(device(EDU).bdf, bind=True, **options)  # type: ignore[arg-type]


def test_not_bound() -> None:
    bdf = device(EDU).bdf
    PciDevice(bdf).bind("")
    error = refusal(lambda: VfioDevice(bdf))
    assert (error.errno, "driver_override" in error.hint) == (errno.ENODEV, True)


def test_the_kernels_driver_has_it_and_gets_it_back() -> None:
    nic = PciDevice(device("virtio1").bdf)
    driver = nic.driver
    assert driver == "virtio-pci"
    error = refusal(lambda: VfioDevice(nic.bdf))
    assert error.errno == errno.EBUSY
    assert "virtio-pci" in error.hint
    assert "bind=True" in error.hint
    with VfioDevice(nic.bdf, bind=True):
        assert nic.driver == "vfio-pci"
    assert nic.driver == driver


def test_open_twice() -> None:
    with open_edu() as dev:
        error = refusal(lambda: VfioDevice(dev.bdf))
        assert (error.errno, "open already" in error.hint) == (errno.EBUSY, True)


def test_no_such_device() -> None:
    assert refusal(lambda: VfioDevice("0000:7f:00.0")).errno == errno.ENODEV


@only_on("newest", "oldest")
def test_ranges_have_the_interrupt_hole() -> None:
    with open_edu() as dev:
        assert dev.iova_ranges == ((0, 0xFEDFFFFF), (0xFEF00000, dev.iova_ranges[1][1]))
        assert dev.info().mappings_left == 65535
        assert dev.info().page_sizes & 0x201000 == 0x201000
        assert dev.iommu == "type1 container"


def test_iovas_respect_the_ranges() -> None:
    """Map one page again and again across 4 GiB of iovas: no map is refused, none touches the interrupt window."""
    with open_edu() as dev, mmap.mmap(-1, SLAB) as memory, PageAllocator(SLAB, commit=True) as allocator:
        del memory
        taken = []
        for _ in range(64):
            iova = dev._mappings.iovas.alloc(64 << 20)  # a big gap: the next slab lands 64 MiB further up
            taken.append(iova)
            mapped = dev.map(allocator.base_vaddr, SLAB, BOTH)
            assert any(first <= mapped and mapped + SLAB - 1 <= last for first, last in dev.iova_ranges)
            taken.append(mapped)
        assert max(taken) > 0xFEF00000
        assert not any(0xFEE00000 - SLAB < iova < 0xFEF00000 for iova in dev.mappings)


@cases("same iova", "interrupt window", "unaligned vaddr", "not ours", "part of a mapping", "nothing")
def test_refused(what: str) -> None:
    with open_edu() as dev, PageAllocator(2 * SLAB, commit=True) as allocator:
        space, vaddr = dev._mappings.space, allocator.base_vaddr
        iova = dev.map(vaddr, SLAB, BOTH)
        both = {"readable": True, "writable": True}
        wanted: dict[str, tuple[Callable[[], object], int, str]] = {
            "same iova": (lambda: space.map(vaddr, iova, SLAB, **both), errno.EEXIST, "mapped already"),
            "interrupt window": (lambda: space.map(vaddr, 0xFEE00000, 4096, **both), errno.EINVAL, "iova_ranges"),
            "unaligned vaddr": (lambda: space.map(vaddr + 1, 8 * SLAB, 4096, **both), errno.EINVAL, "multiples"),
            "not ours": (lambda: space.map(8192, 8 * SLAB, 4096, **both), errno.EFAULT, "memory"),
            "part of a mapping": (lambda: space.unmap(iova, 4096), errno.EINVAL, "undone whole"),
            "nothing": (lambda: dev.unmap(9 * SLAB, 4096, BOTH), errno.EINVAL, "whole and once"),
        }
        call, number, words = wanted[what]
        error = refusal(call)
        assert (error.errno, words in str(error)) == (number, True), str(error)
        assert dev.mappings == {iova: SLAB}
        dev.unmap(iova, SLAB, BOTH)
        assert dev.mappings == {}


@only_on("newest", "oldest")
def test_entry_limit_of_single_pages() -> None:
    """A pool of single pages ends at dma_entry_limit, lends what it has, and gives all of it back."""
    with open_edu(strict=True) as dev:
        space, left = dev._mappings.space, dev.info().mappings_left
        assert left == int(ENTRY_LIMIT.read_text()) == 65535
        with PageAllocator(SLAB, commit=True) as other:
            for n in range(left - 100):
                space.map(other.base_vaddr, (1 << 40) + (n << 12), 4096, readable=True, writable=True)
            with PagePool(flags=PPFlag.DMA_MAP, dev=dev) as pool:
                ids = pool.alloc_bulk(500)
                assert 0 < len(ids) <= 100
                error = refusal(lambda: dev.map(other.base_vaddr, 4096, BOTH))
                assert error.errno == errno.ENOSPC
                assert "dma_entry_limit is 65535" in error.hint
                assert "strict=False" in error.hint
                assert pool.put_bulk(ids) == len(ids)
                pool.check()
            assert dev.mappings == {}


def test_slabs_make_few_mappings() -> None:
    with open_edu() as dev, PageAllocator(64 << 20) as memory:
        with PagePool(flags=PPFlag.DMA_MAP, dev=dev, memory=memory) as pool:
            ids = pool.alloc_bulk(4096)
            assert len(ids) == 4096
            assert set(dev.mappings.values()) == {SLAB}
            assert len(dev.mappings) <= 9
            pool.put_bulk(ids)
        assert memory.close()
        assert dev.mappings == {}


def test_memlock() -> None:
    """Without CAP_IPC_LOCK a process maps as much as RLIMIT_MEMLOCK says, and the refusal says how much that is."""
    reader, writer = os.pipe()
    with PageAllocator(2 * SLAB, commit=True) as memory, open_edu() as dev:
        dev.close()
        for group in Path("/dev/vfio").iterdir():
            os.chmod(group, 0o666)
        child = os.fork()
        if child == 0:
            text = "no refusal"
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
                PciDevice(dev.bdf).bind("vfio-pci")
                os.chmod(f"/dev/vfio/{PciDevice(dev.bdf).iommu_group}", 0o666)
                os.setresuid(65534, 65534, 65534)
                with VfioDevice(dev.bdf) as mine:
                    pages = [mine.map(memory.base_vaddr + (n << 12), 4096, BOTH) for n in range(16)]
                    try:
                        mine.map(memory.base_vaddr + SLAB, 4096, BOTH)
                    except DeviceError as error:
                        text = f"{error.errno} {len(pages)} {error.hint}"
            except BaseException as error:
                text = repr(error)
            os.write(writer, text.encode())
            os._exit(0)
        os.waitpid(child, 0)
    said = os.read(reader, 4096).decode()
    print(said)
    assert said.startswith(f"{errno.ENOMEM} 16 RLIMIT_MEMLOCK is 64 KiB"), said


@only_on("virtio_iommu")
def test_no_interrupt_remapping() -> None:
    PciDevice(device(EDU).bdf).bind("vfio-pci")
    UNSAFE.write_text("0")
    try:
        error = refusal(lambda: VfioDevice(device(EDU).bdf))
    finally:
        UNSAFE.write_text("1")
    assert error.errno == errno.EPERM
    assert "allow_unsafe_interrupts=1" in error.hint
    VfioDevice(device(EDU).bdf).close()


def test_forked_child_has_no_device() -> None:
    with open_edu() as dev, PageAllocator(SLAB, commit=True) as memory:
        iova = dev.map(memory.base_vaddr, SLAB, BOTH)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                dev.unmap(iova, SLAB, BOTH)
                dev.close()
                dev.map(memory.base_vaddr, 4096, BOTH)
            except DeviceError as error:
                theirs.send(str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"forked child" in ours.recv(1000)
        assert refusal(lambda: dev._mappings.space.map(memory.base_vaddr, iova, 4096, readable=True, writable=True))


def test_after_close() -> None:
    dev = open_edu()
    with PageAllocator(SLAB, commit=True) as memory:
        iova = dev.map(memory.base_vaddr, SLAB, BOTH)
        dev.close()
        dev.close()
        dev.unmap(iova, SLAB, BOTH)
        assert refusal(lambda: dev.map(memory.base_vaddr, SLAB, BOTH)).errno == errno.EBADF

# SPDX-License-Identifier: MIT
"""iommufd and VFIO's character devices: all that the other VFIO suites show of containers, shown of these.

No Debian kernel has them, so the suite takes the kernel's VFIO out and puts that of ``modules/iommufd`` in, which
is the same with two more options; the last test puts the kernel's own back.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pagepool import MemoryKind, PageAllocator, PagePool, PPFlag, probe
from pagepool.dma import VfioDevice
from pagepool.dma.vfio import iommufd
from pagepool.errors import DeviceError

from . import cli_pci
from .support import modules
from .support.pci import PciDevice
from .support.plan import device, plan
from .support.suite import cases, only_on
from .vfio_edu import Edu, reserve_huge_pages
from .vfio_errors import BOTH, ENTRY_LIMIT, SLAB, open_edu, refusal

BOOTS = ("newest", "virtio_iommu")
MODULES = ("iommufd",)
UNSAFE = Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts")
TYPE1 = "vfio_iommu_type1"


def swap(*, type1: bool) -> None:
    """Have iommufd and character devices, with containers beside them or without."""
    if not modules.is_loaded("iommufd"):
        modules.replace_stock("iommufd")
        if plan().iommu == "virtio":
            UNSAFE.write_text("1")
    elif type1:
        modules.load("iommufd")
    if not type1:
        modules.remove([TYPE1])


def open_iommufd(name: str = "edu", **options: object) -> VfioDevice:
    """Open a device by its character device."""
    dev = VfioDevice(device(name).bdf, bind=True, iommu="iommufd", **options)  # type: ignore[arg-type]
    assert dev.iommu == "iommufd"
    return dev


def test_the_kernels_own_has_none_of_it() -> None:
    """Asked for where it is not, the answer names the option of the kernel; not asked for, it is not taken."""
    assert "CONFIG_IOMMUFD" in probe.iommufd().reason
    error = refusal(open_iommufd)
    assert (error.errno, "CONFIG_IOMMUFD" in error.hint, "type1" in error.hint) == (errno.ENOENT, True, True)
    with open_edu() as dev:
        assert dev.iommu == "type1 container"


@only_on("newest")
def test_probe() -> None:
    swap(type1=True)
    for pci in plan().devices:
        if PciDevice(pci.bdf).driver == "vfio-pci":
            PciDevice(pci.bdf).bind("")
    assert not probe.iommufd().ok
    assert "no device is bound" in probe.iommufd().reason
    with open_edu():
        assert probe.iommufd() == probe.Answer(True, f"devices {cdev_of('edu')}")
        assert f"devices {cdev_of('edu')}" in probe.vfio().reason


def cdev_of(name: str) -> str:
    """Return the name of the character device."""
    (found,) = (Path(PciDevice(device(name).bdf).folder) / "vfio-dev").iterdir()
    return found.name


@only_on("newest")
def test_taken_of_itself_where_it_is_there() -> None:
    swap(type1=True)
    with open_edu() as dev:
        assert dev.iommu == "iommufd"
    with open_edu(iommu="type1") as dev:
        assert dev.iommu == "type1 container"
    assert_raises(ValueError, lambda: open_edu(iommu="vfio"))


@cases("type1", "iommufd")
@only_on("newest")
def test_the_command_takes_what_it_is_told(iommu: str) -> None:
    """``pagepool rx --pci BDF --iommu``: both are there, each is taken when asked for, and carries the frames."""
    swap(type1=True)
    source = cli_pci.receive("igb0", "--iommu", iommu)
    assert f"VFIO ({iommu}" in source, source


def assert_raises(kind: type[Exception], call: Callable[[], object]) -> str:
    """Return the text of the error of this kind that `call` raises."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def as_nobody(call: Callable[[], object], *, lock_kib: int = 1 << 20) -> str:
    """Return what `call` returns, or the error that it raises, in a process of a user without any capability."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (lock_kib << 10, lock_kib << 10))
            os.setresuid(65534, 65534, 65534)
            said = str(call())
        except BaseException as error:
            said = f"{type(error).__name__} {getattr(error, 'errno', 0)} {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    print(said)
    return said


def give_to_everybody(name: str) -> dict[str, str]:
    """Bind a device to VFIO and let every user open the files that are needed; return those of iommufd."""
    pci = PciDevice(device(name).bdf)
    pci.bind("vfio-pci")
    files = {"/dev/iommu": "/dev/iommu", "the character device": f"/dev/vfio/devices/{cdev_of(name)}"}
    for path in (*files.values(), f"/dev/vfio/{pci.iommu_group}", "/dev/vfio/vfio"):
        os.chmod(path, 0o666)
    return files


@cases("/dev/iommu", "the character device")
@only_on("newest")
def test_containers_where_its_files_are_not_ours(which: str) -> None:
    """A user who was given the group alone is not refused for a file that nobody needs."""
    swap(type1=True)
    path = give_to_everybody("edu")[which]
    bdf = device("edu").bdf

    def opened() -> str:
        with VfioDevice(bdf) as dev:
            return dev.iommu

    assert as_nobody(opened) == "iommufd"
    os.chmod(path, 0o600)
    assert as_nobody(opened) == "type1 container"
    refused = as_nobody(lambda: VfioDevice(bdf, iommu="iommufd"))
    assert refused.startswith(f"DeviceError {errno.EACCES} open "), refused
    assert "chown" in refused


@only_on("newest")
def test_ranges_have_the_interrupt_hole() -> None:
    swap(type1=False)
    with open_iommufd() as dev:
        assert dev.iova_ranges == ((0, 0xFEDFFFFF), (0xFEF00000, dev.iova_ranges[1][1]))
        assert dev.info().page_sizes == 4096
        assert dev.info().mappings_left is None
        iommufd._FIRST_GUESS, guess = 1, iommufd._FIRST_GUESS
        try:
            assert tuple(dev.info().ranges) == dev.iova_ranges  # asked again, with room for all
        finally:
            iommufd._FIRST_GUESS = guess


@cases("same iova", "interrupt window", "unaligned vaddr", "not ours", "nothing", "a file of no iommufd")
@only_on("newest")
def test_refused(what: str) -> None:
    swap(type1=False)
    with open_iommufd() as dev, PageAllocator(2 * SLAB, commit=True) as allocator:
        space, vaddr = dev._mappings.space, allocator.base_vaddr
        iova = dev.map(vaddr, SLAB, BOTH)
        both = {"readable": True, "writable": True}
        wanted: dict[str, tuple[Callable[[], object], int, str]] = {
            "same iova": (lambda: space.map(vaddr, iova, SLAB, **both), errno.EEXIST, "mapped already"),
            "interrupt window": (lambda: space.map(vaddr, 0xFEE00000, 4096, **both), errno.EINVAL, "iova_ranges"),
            "unaligned vaddr": (lambda: space.map(vaddr + 1, 8 * SLAB, 4096, **both), errno.EINVAL, "multiples"),
            "not ours": (lambda: space.map(8192, 8 * SLAB, 4096, **both), errno.EFAULT, "memory"),
            "nothing": (lambda: dev.unmap(9 * SLAB, 4096, BOTH), errno.EINVAL, "whole and once"),
            "a file of no iommufd": (lambda: space.open_device(_NoFile(dev)), errno.ENODEV, "CONFIG_VFIO_DEVICE_CDEV"),
        }
        call, number, words = wanted[what]
        error = refusal(call)
        assert (error.errno, words in str(error)) == (number, True), str(error)
        assert dev.mappings == {iova: SLAB}
        dev.unmap(iova, SLAB, BOTH)
        assert dev.mappings == {}


class _NoFile:
    """A function as a kernel without VFIO_DEVICE_CDEV shows it."""

    vfio_cdev = None

    def __init__(self, dev: VfioDevice) -> None:
        self.bdf = dev.bdf


def test_a_mapping_is_undone_whole() -> None:
    swap(type1=False)
    with open_iommufd() as dev, PageAllocator(SLAB, commit=True) as memory:
        space = dev._mappings.space
        iova = dev.map(memory.base_vaddr, SLAB, BOTH)
        assert space.unmap(iova, 4096) == 0
        assert space.unmap(iova + 4096, SLAB) == 0
        again = refusal(lambda: space.map(memory.base_vaddr, iova, 4096, readable=True, writable=True))
        assert again.errno == errno.EEXIST  # so all of it is there still
        dev.unmap(iova, SLAB, BOTH)
        assert space.unmap(iova, SLAB) == 0


@only_on("newest")
def test_no_limit_of_mappings() -> None:
    """A pool of single pages does not end where a container's does, and gives all of it back."""
    swap(type1=True)
    before = ENTRY_LIMIT.read_text()
    ENTRY_LIMIT.write_text("100")
    pages = {}
    for iommu in ("type1", "iommufd"):
        with open_edu(strict=True, iommu=iommu) as dev:
            with PagePool(flags=PPFlag.DMA_MAP, dev=dev) as pool:
                ids = pool.alloc_bulk(500)
                pages[iommu] = len(ids)
                assert pool.put_bulk(ids) == len(ids)
            assert dev.mappings == {}
    ENTRY_LIMIT.write_text(before)
    assert 0 < pages["type1"] <= 100
    assert pages["iommufd"] == 500


@cases("iommufd", "type1")
@only_on("newest")
def test_open_twice(second: str) -> None:
    """One process and one interface at a time have a device; the other is told so, and can have it after."""
    swap(type1=True)
    with open_iommufd() as dev:
        error = refusal(lambda: VfioDevice(dev.bdf, iommu=second))  # type: ignore[arg-type]
        assert error.errno in (errno.EINVAL, errno.EBUSY)
        assert "open already" in error.hint
        dev.close()
    with open_edu(iommu="type1") as dev:
        error = refusal(lambda: VfioDevice(dev.bdf, iommu="iommufd"))
        assert (error.errno, "open already" in error.hint) == (errno.EBUSY, True)
    open_iommufd().close()


def test_shared_space() -> None:
    """What is mapped for one is mapped for the other, until the last of them is closed."""
    swap(type1=False)
    with open_iommufd("ivshmem") as first, PageAllocator(SLAB, commit=True) as memory:
        view = np.frombuffer(memory.view(), np.uint8)
        view[:64] = 0x11
        dma_addr = first.map(memory.base_vaddr, SLAB, BOTH)
        second = open_iommufd(share=first)
        assert second.shares_memory_with(first)
        first.close()
        Edu(second).read_memory(dma_addr, 64)
        Edu(second).write_memory(dma_addr + 4096, 64)
        assert set(view[4096 : 4096 + 64].tolist()) == {0x11}
        second.close()
        assert refusal(lambda: open_iommufd(share=first)).errno == errno.EBADF
        del view


def test_unmapped_exactly_once() -> None:
    """A pool that is closed with pages out: the kernel unmaps each page once, and nothing is left for `close`."""
    swap(type1=False)
    with open_iommufd(strict=True) as dev:
        space, undone = dev._mappings.space, []
        unmap = space.unmap

        def recorded(iova: int, size_bytes: int) -> int:
            undone.append((iova, unmap(iova, size_bytes)))
            return undone[-1][1]

        space.unmap = recorded  # type: ignore[method-assign]
        pool = PagePool(flags=PPFlag.DMA_MAP, dev=dev)
        ids = pool.alloc_bulk(100)
        mapped = dict(dev.mappings)
        assert set(mapped.values()) == {4096}
        pool.close()
        assert dev.mappings == {} or len(undone) + len(dev.mappings) == len(mapped)
        assert pool.put_bulk(ids) == 100
        assert dev.mappings == {}
        assert sorted(undone) == sorted(mapped.items())
        with PageAllocator(SLAB, commit=True) as memory:
            left = dev.map(memory.base_vaddr, SLAB, BOTH)
            dev.close()
        assert undone[-1] == (left, SLAB)
        assert len(undone) == len(mapped) + 1


@only_on("newest")
def test_memlock_is_the_users() -> None:
    """Without CAP_IPC_LOCK a user maps what RLIMIT_MEMLOCK says, over all processes, and the refusal says so."""
    swap(type1=False)
    give_to_everybody("edu")
    give_to_everybody("ivshmem")
    with PageAllocator(SLAB, commit=True) as memory:

        def map_pages(name: str, most: int) -> str:
            with VfioDevice(device(name).bdf) as dev:
                assert dev.iommu == "iommufd"
                for n in range(most):
                    try:
                        dev.map(memory.base_vaddr + (n << 12), 4096, BOTH)
                    except DeviceError as error:
                        return f"{error.errno} after {n}: {error.hint}"
                return f"{most}; another process: {as_nobody(lambda: map_pages('ivshmem', 1), lock_kib=64)}"

        refused = f"{errno.ENOMEM} after {{}}: RLIMIT_MEMLOCK is 64 KiB"
        assert as_nobody(lambda: map_pages("edu", 17), lock_kib=64).startswith(refused.format(16))
        said = as_nobody(lambda: map_pages("edu", 16), lock_kib=64)
        assert said.startswith(f"16; another process: {refused.format(0)}"), said
        assert "all processes of the user" in said
        assert as_nobody(lambda: map_pages("ivshmem", 16), lock_kib=64).startswith("16;"), "it was not given back"


@cases("type1", "iommufd")
@only_on("newest")
def test_what_a_mapping_costs(iommu: str) -> None:
    """Print what `docs/vfio.md` says: 512 pages mapped one by one against the huge page that they make up."""
    swap(type1=True)
    reserve_huge_pages()
    with open_edu(iommu=iommu) as dev, PageAllocator(SLAB, MemoryKind.HUGETLB, commit=True) as memory:
        assert list(memory.got) == [MemoryKind.HUGETLB]
        micros = {}
        for size_bytes, rounds in ((4096, 512), (SLAB, 32)):
            vaddrs = [memory.base_vaddr + n * size_bytes % SLAB for n in range(rounds)]
            start = time.perf_counter_ns()
            mapped = [dev.map(vaddr, size_bytes, BOTH) for vaddr in vaddrs]
            between = time.perf_counter_ns()
            assert len(set(mapped)) == len(dev.mappings) == rounds
            for dma_addr in mapped:
                dev.unmap(dma_addr, size_bytes, BOTH)
            times = (between - start, time.perf_counter_ns() - between)
            micros[size_bytes] = [ns / 1000 / rounds for ns in times]
            print("{}: {} KiB: map {:.0f} us, unmap {:.0f} us".format(iommu, size_bytes >> 10, *micros[size_bytes]))
        ratios = [512 * page / slab for page, slab in zip(micros[4096], micros[SLAB], strict=True)]
        print(f"{iommu}: page by page map is {ratios[0]:.0f} x dearer than by slab, unmap {ratios[1]:.0f} x")
        assert dev.mappings == {}


@only_on("virtio_iommu")
def test_no_interrupt_remapping() -> None:
    swap(type1=False)
    PciDevice(device("edu").bdf).bind("vfio-pci")
    UNSAFE.write_text("0")
    try:
        error = refusal(open_iommufd)
    finally:
        UNSAFE.write_text("1")
    assert error.errno == errno.EPERM
    assert "iommufd.allow_unsafe_interrupts=1 (now N)" in error.hint
    open_iommufd().close()


@cases(
    "vfio_errors.not_bound",
    "vfio_errors.the_kernels_driver_has_it_and_gets_it_back",
    "vfio_errors.no_such_device",
    "vfio_errors.iovas_respect_the_ranges",
    "vfio_errors.slabs_make_few_mappings",
    "vfio_errors.forked_child_has_no_device",
    "vfio_errors.after_close",
    "vfio_edu.copy_through_pool_pages[hugetlb]",
    "vfio_edu.copy_through_pool_pages[anonymous]",
    "vfio_edu.copy_through_pool_pages[memfd]",
    "vfio_edu.copy_through_pool_pages[memfd_hugetlb]",
    "vfio_edu.strict_pool_maps_page_by_page",
    "vfio_edu.refused_after_unmap[write]",
    "vfio_edu.refused_after_unmap[read]",
    "vfio_edu.unmap_is_flushed_at_once",
    "vfio_edu.read_only_mapping_holds",
    "vfio_edu.write_only_mapping_holds",
    "vfio_edu.closed_device_reaches_nothing",
    "vfio_edu.interrupts_by_eventfd[MSI]",
    "vfio_edu.interrupts_by_eventfd[INTX]",
    "vfio_nics.echo[igb0]",
    "vfio_nics.echo[e1000e]",
    "vfio_nics.echo[virtio1]",
    "vfio_nics.sleeps_until_an_interrupt[igb0]",
    "vfio_nics.strict[igb0]",
    "vfio_nics.refused_after_unmap[igb0]",
    "vfio_nics.refused_after_unmap[virtio1]",
    "vfio_nics.redirect_between_nics_that_share_memory",
    "vfio_nvme.scattered_pages_there_and_back[8]",
    "vfio_nvme.many_commands_under_way",
    "vfio_nvme.refused_after_unmap",
    "smoke.kernel_has_not_complained",
)
@only_on("newest")
def test_as_with_containers(what: str) -> None:
    """The test of another suite; there are no containers now, so that nothing else than iommufd can have done it."""
    run_without_containers(what)


@cases(
    "vfio_edu.refused_after_unmap[write]",
    "vfio_edu.read_only_mapping_holds",
    "vfio_nics.echo[igb0]",
    "smoke.kernel_has_not_complained",
)
@only_on("virtio_iommu")
def test_as_with_containers_behind_virtio_iommu(what: str) -> None:
    run_without_containers(what)


def run_without_containers(what: str) -> None:
    """Run ``SUITE.TEST[CASE]``."""
    swap(type1=False)
    suite, _, test = what.partition(".")
    name, _, case = test.partition("[")
    getattr(importlib.import_module(f".{suite}", __package__), f"test_{name}")(*([case[:-1]] if case else []))


def test_the_kernels_own_comes_back() -> None:
    modules.restore_stock("iommufd")
    assert not os.path.exists("/dev/iommu")
    with open_edu() as dev:
        assert dev.iommu == "type1 container"

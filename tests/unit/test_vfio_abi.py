# SPDX-License-Identifier: MIT
"""Requests as the kernel's headers lay them out, what its answers mean, and what its refusals tell the user."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from pagepool import DmaDir
from pagepool.dma.vfio import Registers, abi, hints, sysfs
from pagepool.dma.vfio.abi import IrqFlag, Request
from pagepool.dma.vfio.mappings import IoMappings
from pagepool.dma.vfio.sysfs import PciSysfs
from pagepool.errors import DeviceError


def test_request_numbers() -> None:
    """``_IO(';', 100 + n)`` and ``_IO(';', 0x80 + n)``."""
    assert (Request.GET_API_VERSION, Request.DEVICE_GET_INFO) == (0x3B64, 0x3B6B)
    assert (Request.MAP_DMA, Request.UNMAP_DMA) == (0x3B71, 0x3B72)
    assert (Request.DEVICE_BIND_IOMMUFD, Request.DEVICE_ATTACH_IOMMUFD_PT) == (0x3B76, 0x3B77)
    assert (Request.IOAS_ALLOC, Request.IOAS_MAP, Request.IOAS_UNMAP) == (0x3B81, 0x3B85, 0x3B86)


def test_structure_sizes() -> None:
    """sizeof() of the kernel's structures."""
    sizes = {
        "GROUP_STATUS": 8,
        "IOMMU_INFO": 24,
        "DMA_MAP": 32,
        "DMA_UNMAP": 24,
        "DEVICE_INFO": 20,
        "REGION_INFO": 32,
        "IRQ_INFO": 16,
        "IRQ_SET": 20,
        "BIND_IOMMUFD": 16,
        "ATTACH_PT": 12,
        "IOAS_ALLOC": 12,
        "IOAS_IOVA_RANGES": 32,
        "IOAS_MAP": 40,
        "IOAS_UNMAP": 24,
    }
    assert {name: getattr(abi, name).size for name in sizes} == sizes


def test_irq_set_carries_its_eventfds() -> None:
    packed = abi.pack_irq_set(IrqFlag.DATA_EVENTFD | IrqFlag.ACTION_TRIGGER, 2, 0, [7, 9], 2)
    assert struct.unpack("=7I", packed) == (28, 0x24, 2, 0, 2, 7, 9)


def test_iommu_info_without_capabilities() -> None:
    answer = abi.IOMMU_INFO.pack(24, 1, 0x4020_1000, 0, 0)
    assert abi.unpack_iommu_info(answer) == abi.IommuInfo(0x4020_1000, [], None)


def test_iommu_info_with_capabilities() -> None:
    ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1)]
    body = abi.CAP_HEADER.pack(1, 1, 24 + 48) + abi.IOVA_RANGE_COUNT.pack(2, 0)
    body += b"".join(abi.IOVA_RANGE.pack(*r) for r in ranges)
    body += abi.CAP_HEADER.pack(3, 1, 0) + struct.pack("=I", 65535)
    info = abi.unpack_iommu_info(abi.IOMMU_INFO.pack(24 + len(body), 3, 0x1000, 24, 0) + body)
    assert info == abi.IommuInfo(0x1000, ranges, 65535)


def test_refused_request_is_a_device_error() -> None:
    fd = os.memfd_create("no VFIO file")
    try:
        with pytest.raises(DeviceError) as refused:
            abi.ioctl(fd, Request.MAP_DMA, b"\0" * 32, "vaddr 0x1000 to iova 0x2000, 4096 bytes")
    finally:
        os.close(fd)
    assert refused.value.errno == errno.ENOTTY
    assert "MAP_DMA vaddr 0x1000" in str(refused.value)


@pytest.mark.parametrize(
    ("step", "number", "knob"),
    [
        ("MAP_DMA", errno.ENOSPC, "dma_entry_limit"),
        ("MAP_DMA", errno.ENOMEM, "LimitMEMLOCK"),
        ("MAP_DMA", errno.EINVAL, "iova_ranges"),
        ("MAP_DMA", errno.EEXIST, "mapped already"),
        ("IOAS_MAP", errno.ENOMEM, "LimitMEMLOCK"),
        ("IOAS_MAP", errno.EINVAL, "iova_ranges"),
        ("DEVICE_BIND_IOMMUFD", errno.EPERM, "iommufd.allow_unsafe_interrupts"),
        ("DEVICE_BIND_IOMMUFD", errno.EINVAL, "one process"),
        ("DEVICE_ATTACH_IOMMUFD_PT", errno.EADDRINUSE, "share="),
        ("open iommufd", errno.ENOENT, "CONFIG_IOMMUFD"),
        ("open iommufd", errno.EACCES, "chown"),
        ("find character device of", errno.ENODEV, "CONFIG_VFIO_DEVICE_CDEV"),
        ("SET_IOMMU", errno.EPERM, "allow_unsafe_interrupts"),
        ("open group", errno.ENOENT, "driver_override"),
        ("open group", errno.EBUSY, "one process"),
        ("open container", errno.ENOENT, "modprobe vfio-pci"),
        ("bind", errno.EINVAL, "intel_iommu=on"),
    ],
)
def test_hints_name_the_knob(step: str, number: int, knob: str) -> None:
    assert knob in hints.hint(step, number)


def test_memlock_hint_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints.resource, "getrlimit", lambda _: (64 << 10, 8 << 20))
    assert "64 KiB of at most 8192 KiB" in hints.memlock()
    monkeypatch.setattr(hints.resource, "getrlimit", lambda _: (-1, -1))
    assert "out of memory" in hints.memlock()


@pytest.mark.parametrize("bdf", ["eth0", "0000:01:00", "01:00.8", "", "0000:01:00.0/../x"])
def test_places_that_are_none(bdf: str) -> None:
    with pytest.raises(ValueError, match="no place on the PCI bus"):
        PciSysfs(bdf)


def test_no_device_at_a_place() -> None:
    with pytest.raises(DeviceError, match="lspci -D"):
        PciSysfs("ffff:ff:1f.7")


@pytest.fixture
def fake_bus(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    folder = tmp_path / "devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x8086\n")
    (folder / "device").write_text("0x10c9\n")
    (folder / "numa_node").write_text("1\n")
    monkeypatch.setattr(sysfs, "_DEVICES", tmp_path / "devices")
    return tmp_path


def test_sysfs_without_an_iommu(fake_bus) -> None:  # type: ignore[no-untyped-def]
    pci = PciSysfs("01:00.0")
    assert (pci.bdf, pci.vendor, pci.device, pci.nid, pci.driver) == ("0000:01:00.0", 0x8086, 0x10C9, 1, "")
    with pytest.raises(DeviceError, match="intel_iommu=on"):
        pci.require_vfio()


def test_sysfs_with_the_kernels_driver(fake_bus) -> None:  # type: ignore[no-untyped-def]
    folder = fake_bus / "devices/0000:01:00.0"
    for name in ("groups/7", "drivers/igb", "drivers/vfio-pci"):
        (fake_bus / name).mkdir(parents=True)
    (folder / "iommu_group").symlink_to(fake_bus / "groups/7")
    pci = PciSysfs("01:00.0")
    assert pci.iommu_group == "7"
    with pytest.raises(DeviceError, match="no driver has it"):
        pci.require_vfio()
    (folder / "driver").symlink_to(fake_bus / "drivers/igb")
    (folder / "net/eth7").mkdir(parents=True)
    with pytest.raises(DeviceError, match=r"kernel's igb has it \(as eth7\).*bind=True") as refused:
        pci.require_vfio()
    assert refused.value.errno == errno.EBUSY
    (folder / "driver").unlink()
    (folder / "driver").symlink_to(fake_bus / "drivers/vfio-pci")
    pci.require_vfio()


def test_registers_are_read_and_written_in_their_width() -> None:
    bar = bytearray(64)
    registers = Registers(bar)
    registers.write32(8, 0x11223344)
    registers.write8(9, 0xAA)
    registers.write16(10, 0xBBCC)
    registers.write64(16, 0x0102_0304_0506_0708)
    assert (registers.read32(8), registers.read16(8)) == (0xBBCC_AA44, 0xAA44)
    assert registers.read64(16) == 0x0102_0304_0506_0708
    for at in (3, 64, -4):
        with pytest.raises(IndexError):
            registers.read32(at)
    registers.close()
    with pytest.raises(ValueError, match="released"):
        registers.read32(0)


def test_a_group_is_held_back_by_the_kernels_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three functions in a group, one with VFIO, one with a driver of the kernel, one with none."""
    drivers = {"0000:01:00.0": "vfio-pci", "0000:01:00.1": "igb", "0000:01:00.2": ""}
    group = tmp_path / "iommu_groups/7"
    (group / "devices").mkdir(parents=True)
    for bdf, driver in drivers.items():
        folder = tmp_path / "devices" / bdf
        folder.mkdir(parents=True)
        (folder / "iommu_group").symlink_to(group)
        (group / "devices" / bdf).symlink_to(folder)
        if driver:
            (tmp_path / "drivers" / driver).mkdir(parents=True)
            (folder / "driver").symlink_to(tmp_path / "drivers" / driver)
    monkeypatch.setattr(sysfs, "_DEVICES", tmp_path / "devices")
    error = PciSysfs("0000:01:00.0").not_viable()
    assert error.errno == errno.EBUSY
    assert "group 7 of 0000:01:00.0" in str(error)
    assert "unbind 0000:01:00.1 with igb, or" in error.hint


class FakeSpace:
    """An I/O address space that does as told and keeps what it was told."""

    name = "fake"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.refuse = 0

    def open_device(self, pci: PciSysfs) -> int:
        return -1

    def info(self) -> abi.IommuInfo:
        return abi.IommuInfo(0x20_1000, [(0, 0xFEDF_FFFF)], 65535)

    def map(self, vaddr: int, iova: int, size_bytes: int, *, readable: bool, writable: bool) -> None:
        if self.refuse:
            raise DeviceError(self.refuse, "MAP_DMA", "")
        self.calls.append(("map", vaddr, iova, size_bytes, readable, writable))

    def unmap(self, iova: int, size_bytes: int) -> int:
        self.calls.append(("unmap", iova, size_bytes))
        return size_bytes

    def close(self) -> None:
        self.calls.append(("close",))


def test_a_page_that_dies_while_iovas_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unmapped there and then; its iova is given back when the search is over."""
    mappings = IoMappings(FakeSpace())
    mappings.learn_ranges(64)
    free = mappings.iovas.free_bytes
    first = mappings.map(0x7000_0000, 4096, DmaDir.FROM_DEVICE)
    alloc, seen = mappings.iovas.alloc, []

    def search(size_bytes: int) -> int:
        before = mappings.iovas.free_bytes
        mappings.unmap(first, 4096)
        seen.append((first in mappings.mapped, mappings.iovas.free_bytes - before))
        return alloc(size_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(mappings.iovas, "alloc", search)
        second = mappings.map(0x7000_1000, 4096, DmaDir.FROM_DEVICE)
    assert seen == [(False, 0)]
    assert second != first
    mappings.unmap(second, 4096)
    assert mappings.iovas.free_bytes == free
    mappings.leave()


def test_mappings_keep_books() -> None:
    space = FakeSpace()
    mappings = IoMappings(space)
    mappings.learn_ranges(64)
    free = mappings.iovas.free_bytes
    iova = mappings.map(0x7000_0000, 2 << 20, DmaDir.FROM_DEVICE)
    assert space.calls == [("map", 0x7000_0000, iova, 2 << 20, False, True)]
    other = mappings.map(0x7000_0000, 4096, DmaDir.TO_DEVICE)
    assert space.calls[-1][-2:] == (True, False)
    for wrong in ((iova, 4096), (iova + 4096, 4096), (1 << 40, 4096)):
        with pytest.raises(DeviceError, match="whole and once"):
            mappings.unmap(*wrong)
    space.refuse = errno.ENOSPC
    with pytest.raises(DeviceError):
        mappings.map(0x7000_0000, 4096, DmaDir.BIDIRECTIONAL)
    assert mappings.mapped == {iova: 2 << 20, other: 4096}
    mappings.unmap(iova, 2 << 20)
    mappings.join().leave()
    assert ("close",) not in space.calls
    mappings.leave()
    assert space.calls[-2:] == [("unmap", other, 4096), ("close",)]
    assert (mappings.mapped, mappings.iovas.free_bytes) == ({}, free - 4096)

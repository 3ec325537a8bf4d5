# SPDX-License-Identifier: MIT
"""Proves the rig, not pagepool: the machine is as the host described it, and the two can talk."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import socket
import struct
import time
from pathlib import Path

from .support import host
from .support.frames import echo_of, make_frame
from .support.kernel_log import kernel_log
from .support.net import bring_up, interface_of
from .support.pci import PciDevice
from .support.plan import device, plan
from .support.suite import Skip, cases, only_on

HUGE_PAGE_BYTES = 2 << 20
TAINT_DIED, TAINT_WARNED = 1 << 7, 1 << 9
MAP_HUGETLB = 0x40000
NODES = Path("/sys/devices/system/node")
SYS_MBIND, SYS_GET_MEMPOLICY, MPOL_BIND, MPOL_F_NODE, MPOL_F_ADDR = 237, 239, 2, 1, 2
ETH_P_ALL = 3
VFIO_GROUP_GET_STATUS, VFIO_GROUP_FLAGS_VIABLE = 0x3B67, 1
EDU_DMA_FROM, EDU_DMA_TO, EDU_DMA_COUNT, EDU_DMA_COMMAND, EDU_BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def test_versions() -> None:
    assert platform.release() == plan().kernel
    assert platform.python_version().startswith(plan().python + ".")


@only_on("oldest")
def test_oldest_kernel_is_6_1() -> None:
    assert platform.release().startswith("6.1.")


def test_kernel_has_not_complained() -> None:
    tainted = int(Path("/proc/sys/kernel/tainted").read_text())
    assert not tainted & (TAINT_DIED | TAINT_WARNED), [line for line in kernel_log() if "WARNING" in line]


def test_numpy() -> None:
    import numpy as np

    pages = np.frombuffer(mmap.mmap(-1, 1 << 20), dtype=np.uint8).reshape(256, 4096)
    pages[:] = np.arange(256, dtype=np.uint8)[:, None]
    assert pages[[3, 5, 250], 17].tolist() == [3, 5, 250]


def test_pagepool_is_importable() -> None:
    if not plan().pagepool:
        raise Skip("the host was told to leave pagepool out")
    import pagepool

    assert str(pagepool.__file__).startswith("/site/")


def test_two_numa_nodes() -> None:
    assert (NODES / "online").read_text().strip() == "0-1"
    assert [(NODES / f"node{nid}/distance").read_text().split() for nid in (0, 1)] == [
        ["10", "20"],
        ["20", "10"],
    ]
    assert [(NODES / f"node{nid}/cpulist").read_text().strip() for nid in (0, 1)] == ["0", "1"]


@cases("0", "1")
def test_hugetlb_on_node(nid: str) -> None:
    (NODES / f"node{nid}/hugepages/hugepages-2048kB/nr_hugepages").write_text("2")
    page = mmap.mmap(-1, HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(page))
    nodes = ctypes.c_ulong(1 << int(nid))
    where = ctypes.c_int(-1)
    bound = libc.syscall(
        SYS_MBIND,
        ctypes.c_void_p(vaddr),
        ctypes.c_ulong(len(page)),
        MPOL_BIND,
        ctypes.byref(nodes),
        ctypes.c_ulong(64),
        0,
    )
    page[0] = 1
    flags = ctypes.c_ulong(MPOL_F_NODE | MPOL_F_ADDR)
    asked = libc.syscall(SYS_GET_MEMPOLICY, ctypes.byref(where), None, ctypes.c_ulong(0), ctypes.c_void_p(vaddr), flags)
    assert (bound, asked, where.value) == (0, 0, int(nid))


@cases("edu", "e1000e", "virtio0", "virtio1", "nvme", "ivshmem", "igb0", "igb1")
def test_device(name: str) -> None:
    wanted = device(name)
    found = PciDevice(wanted.bdf)
    assert (found.vendor, found.device, found.nid) == (wanted.vendor, wanted.device, wanted.nid)
    assert found.iommu_group is not None


def test_devices_have_groups_of_their_own() -> None:
    groups = [PciDevice(device.bdf).iommu_group for device in plan().devices]
    assert len(set(groups)) == len(groups), groups


@cases("edu", "e1000e", "virtio1", "nvme", "igb1")
def test_vfio_takes(name: str) -> None:
    pci = PciDevice(device(name).bdf)
    before = pci.driver
    pci.bind("vfio-pci")
    group = os.open(f"/dev/vfio/{pci.iommu_group}", os.O_RDWR)
    status = bytearray(struct.pack("II", 8, 0))
    fcntl.ioctl(group, VFIO_GROUP_GET_STATUS, status)
    os.close(group)
    pci.bind(before)
    assert struct.unpack("II", status)[1] & VFIO_GROUP_FLAGS_VIABLE


def test_host_counts_refused_dma() -> None:
    """A device writes where nothing is mapped for it: the host's count and the kernel's log both know."""
    before = host.iommu_faults()
    pci = PciDevice(device("edu").bdf)
    pci.bind("")
    pci.enable(bus_master=True)
    registers = pci.map_bar(0)
    for offset, value in (
        (EDU_DMA_FROM, EDU_BUFFER),
        (EDU_DMA_TO, 0x100000),
        (EDU_DMA_COUNT, 64),
        (EDU_DMA_COMMAND, 3),
    ):
        ctypes.c_uint64.from_buffer(registers, offset).value = value
    while ctypes.c_uint64.from_buffer(registers, EDU_DMA_COMMAND).value & 1:
        time.sleep(0.01)
    pci.enable(bus_master=False)
    assert host.iommu_faults() > before
    assert any("fault" in line.lower() for line in kernel_log())


def test_shared_memory() -> None:
    pci = PciDevice(device("ivshmem").bdf)
    pci.enable(bus_master=False)
    shared = pci.map_bar(2)
    host.write_shared(4096, b"from the host")
    assert shared[4096 : 4096 + 13] == b"from the host"
    shared[8192 : 8192 + 14] = b"from the guest"
    assert host.read_shared(8192, 14) == b"from the guest"


def test_frames_echoed_by_the_kernels_driver() -> None:
    nic, count = device("virtio0"), 1200  # more than QEMU 10.0 could do: see rig/packages.py
    with _packet_socket(nic.mac) as sock:
        call = host.inject(nic.name, count)
        while not call.done():
            try:
                sock.send(echo_of(sock.recv(2048)))
            except TimeoutError:
                pass
    assert {key: call.result()[key] for key in ("echoed", "wrong", "lost")} == {
        "echoed": count,
        "wrong": 0,
        "lost": 0,
    }


def test_frames_made_here() -> None:
    with _packet_socket(device("virtio0").mac) as sock:
        call = host.expect("virtio0", 40, seed=7)
        for index in range(40):
            sock.send(make_frame(index, seed=7, destination=bytes.fromhex("0200000000fe")))
        assert call.result() == {"exact": 40, "wrong": 0, "lost": 0}


def test_host_errors_arrive() -> None:
    answer = ""
    try:
        host.read_shared(0, 1 << 20)
    except host.HostError as error:
        answer = str(error)
    assert "at most 1024" in answer


def _packet_socket(mac: str) -> socket.socket:
    """Return a raw socket on the kernel's interface with this Ethernet address, brought up."""
    interface = interface_of(mac)
    bring_up(interface)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((interface, 0))
    sock.settimeout(0.2)
    return sock

# SPDX-License-Identifier: MIT
"""QEMU's command line for one boot: a q35 machine with two NUMA nodes, an IOMMU and the devices of `devices`.

Always emulation (TCG), never KVM: the rig must behave the same wherever it runs, nested machines included.
Every device has an explicit bus, since QEMU would otherwise put it behind the PCI expander bridges.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import hosttools
from .boots import Boot
from .devices import DEVICES, NICS, NUMA_BUSES, SHARED_MEMORY_BYTES, Device

NODE_MEMORY_MIB = 512
IOMMU_SLOT, BRIDGE_SLOT = 3, 0x10
# No display, no console of its own, no second life after a panic, and none after ours, however that ends.
LIFE = ("-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot", "-run-with", "exit-with-parent=on")
IOMMUS = {
    "intel": "intel-iommu,intremap=on",  # without interrupt remapping VFIO refuses the IOMMU
    "virtio": f"virtio-iommu-pci,bus=pcie.0,addr={IOMMU_SLOT}",
}


@dataclass(frozen=True)
class Files:
    """The files of one run, all in its folder."""

    folder: Path
    kernel: Path
    initrd: Path

    @property
    def console(self) -> Path:
        """The kernel's messages: the first serial line."""
        return self.folder / "console.log"

    @property
    def trace(self) -> Path:
        """QEMU's trace events, one to a line."""
        return self.folder / "trace.log"

    @property
    def log(self) -> Path:
        """What QEMU itself has to say."""
        return self.folder / "qemu.log"

    @property
    def disk(self) -> Path:
        """Disk of the nvme device."""
        return self.folder / "disk.img"


def command_line(tree: Path, boot: Boot, files: Files, port_fds: dict[str, int], shared_fd: int) -> list[str]:
    """Return the command line; results come on standard output, answers go to standard input.

    Parameters
    ----------
    tree : Path
        QEMU's package set, unpacked.
    port_fds : dict
        For each NIC's name the inherited socket of its cable.
    shared_fd : int
        The inherited file behind the shared memory, of `SHARED_MEMORY_BYTES`.
    """
    firmware = [tree / "usr/share" / name for name in ("qemu", "seabios")]
    return [
        *hosttools.command(tree, "qemu-system-x86_64"),
        *(word for folder in firmware for word in ("-L", str(folder))),
        *("-machine", "q35,kernel-irqchip=off", "-cpu", "max", *_accelerator()),
        *LIFE,
        *(
            "-serial",
            f"file:{files.console}",
            "-chardev",
            "stdio,id=results,signal=off",
            "-serial",
            "chardev:results",
        ),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", boot.command_line),
        *_numa(),
        *("-device", IOMMUS[boot.iommu]),
        *_bridges(),
        *(
            "-object",
            f"memory-backend-file,id=shared,share=on,mem-path=/proc/self/fd/{shared_fd},size={SHARED_MEMORY_BYTES}",
        ),
        *("-drive", f"id=disk,if=none,format=raw,file={files.disk}"),
        *(
            word
            for nic in NICS
            for word in ("-netdev", f"dgram,id={nic.name},local.type=fd,local.str={port_fds[nic.name]}")
        ),
        *(word for device in DEVICES for word in ("-device", _device(device))),
        *("-trace", boot.fault_event, "-trace", "vtd_inv_desc_iotlb*", "-D", str(files.trace)),
    ]


def _accelerator() -> list[str]:
    """Emulation; with ``PAGEPOOL_VM_ICOUNT=1`` one instruction is one nanosecond of the guest's, on one thread."""
    if os.environ.get("PAGEPOOL_VM_ICOUNT", "") == "1":
        return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
    return ["-accel", "tcg,thread=multi"]


def _numa() -> list[str]:
    """Two nodes, each with one CPU in a socket of its own and half of the memory."""
    nodes = len(NUMA_BUSES)
    words = ["-m", str(nodes * NODE_MEMORY_MIB), "-smp", f"{nodes},sockets={nodes}"]
    for nid in NUMA_BUSES:
        words += ["-object", f"memory-backend-ram,id=memory{nid},size={NODE_MEMORY_MIB}M"]
        words += ["-numa", f"node,nodeid={nid},memdev=memory{nid},cpus={nid}"]
    return [*words, "-numa", "dist,src=0,dst=1,val=20"]


def _bridges() -> list[str]:
    """For each NUMA node a PCI expander bridge, whose devices are the node's own, with one root port."""
    words = []
    for nid, bus in NUMA_BUSES.items():
        bridge = f"pxb-pcie,id=bridge{nid},bus_nr={bus},bus=pcie.0,addr={BRIDGE_SLOT + nid:#x},numa_node={nid}"
        words += [
            "-device",
            bridge,
            "-device",
            f"pcie-root-port,id=port{nid},bus=bridge{nid},chassis={nid + 1},slot=0",
        ]
    return words


def _device(device: Device) -> str:
    place = f"bus=pcie.0,addr={device.slot:#x}" if device.nid < 0 else f"bus=port{device.nid}"
    nic = f",netdev={device.name},mac={device.mac},romfile=" if device.is_nic else ""
    return f"{device.model},id={device.name}-dev,{place}{nic}"

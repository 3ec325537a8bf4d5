# SPDX-License-Identifier: MIT
"""The devices of the emulated machine: the same in every boot, each at a fixed place on the PCI bus.

Every device has a name by which suites and the host speak of it ("igb1"). The guest gets this list with the
plan, so that a suite asks for a device by name and never searches the bus.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT_BUS = 0
NUMA_BUSES = {0: 0x20, 1: 0x40}  # first bus behind the PCI expander bridge of each NUMA node
SHARED_MEMORY_BYTES = 4 << 20
DISK_BYTES = 64 << 20


@dataclass(frozen=True)
class Device:
    """One PCI device.

    Parameters
    ----------
    name : str
        How suites and the host call it.
    model : str
        QEMU's name of the model, with its options.
    vendor, device : int
        PCI ids.
    slot : int
        Slot on the root bus; unused behind a NUMA node's bridge.
    nid : int
        NUMA node the device is attached to, -1 for none.
    is_nic : bool
        Has a network port, whose other end the host holds.
    """

    name: str
    model: str
    vendor: int
    device: int
    slot: int = 0
    nid: int = -1
    is_nic: bool = False

    @property
    def bdf(self) -> str:
        """PCI place as sysfs writes it; behind a bridge, alone on the bus after the root port's."""
        bus, slot = (ROOT_BUS, self.slot) if self.nid < 0 else (NUMA_BUSES[self.nid] + 1, 0)
        return f"0000:{bus:02x}:{slot:02x}.0"

    @property
    def mac(self) -> str:
        """Ethernet address of a NIC: ends in the device's place in `DEVICES`, from 1."""
        return f"52:54:00:00:00:{DEVICES.index(self) + 1:02x}"


VIRTIO_NET = "virtio-net-pci,disable-legacy=on,iommu_platform=on"  # without iommu_platform it goes round the IOMMU
DEVICES = [
    Device("edu", "edu,dma_mask=0xffffffffffff", 0x1234, 0x11E8, slot=4),
    Device("e1000e", "e1000e", 0x8086, 0x10D3, slot=5, is_nic=True),
    Device("virtio0", VIRTIO_NET, 0x1AF4, 0x1041, slot=6, is_nic=True),
    Device("virtio1", VIRTIO_NET, 0x1AF4, 0x1041, slot=7, is_nic=True),
    Device("nvme", "nvme,serial=pagepool,drive=disk", 0x1B36, 0x0010, slot=8),
    Device("ivshmem", "ivshmem-plain,memdev=shared", 0x1AF4, 0x1110, slot=9),
    Device("igb0", "igb", 0x8086, 0x10C9, nid=0, is_nic=True),
    Device("igb1", "igb", 0x8086, 0x10C9, nid=1, is_nic=True),
]
NICS = [device for device in DEVICES if device.is_nic]

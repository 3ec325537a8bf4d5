# SPDX-License-Identifier: MIT
"""The boots: which kernel on which IOMMU. One boot runs every suite that wants it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .packages import KERNEL_NEWEST, KERNEL_OLDEST, PackageSet

MODULES = [
    "virtio_pci",
    "virtio_iommu",
    "vfio_pci",
    "vfio_iommu_type1",
    "virtio_net",
    "veth",
    "uio_pci_generic",
]
ARGUMENTS = [
    "console=ttyS0",
    "quiet",
    "panic=-1",  # with QEMU's -no-reboot a panic ends the machine
    "no_timer_check",  # on a busy host the emulated timer is too late for this check, and the kernel panics
    "nokaslr",
    "audit=0",
    "lsm=",
]


@dataclass(frozen=True)
class Boot:
    """One configuration of the machine.

    Parameters
    ----------
    iommu : str
        ``intel`` (VT-d) or ``virtio``.
    module_parameters : dict
        Parameters by module name.
    fault_event : str
        QEMU's trace event for an access that the IOMMU refused.
    apart : str
        Suites whose names begin so get a machine of their own: they take as long as all others together.
    """

    name: str
    kernel: PackageSet
    iommu: str
    arguments: tuple[str, ...]
    fault_event: str
    module_parameters: dict[str, str] = field(default_factory=dict)
    apart: str = ""

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return " ".join([*ARGUMENTS, *self.arguments])


INTEL = ("intel_iommu=on", "iommu.strict=1")
# The oldest first: nothing is built for it, so it runs while the modules of the newest kernel are compiled. Then the
# longest, so that it does not run alone at the end.
BOOTS = [
    Boot("oldest", KERNEL_OLDEST, "intel", INTEL, "vtd_dmar_fault"),
    Boot("newest", KERNEL_NEWEST, "intel", INTEL, "vtd_dmar_fault", apart="oracle"),
    Boot(
        "virtio_iommu",
        KERNEL_NEWEST,
        "virtio",
        # Until the IOMMU's module is loaded its devices must wait for it, however slow the host.
        ("iommu.strict=1", "deferred_probe_timeout=3600"),
        "virtio_iommu_report_fault",
        {"vfio_iommu_type1": "allow_unsafe_interrupts=1"},  # virtio-iommu does not remap interrupts
    ),
]

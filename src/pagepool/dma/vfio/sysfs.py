# SPDX-License-Identifier: MIT
"""A PCI function as sysfs shows it: its ids, its driver, its IOMMU group, and how it changes hands.

No VFIO here: nothing is opened, and no register is touched. Invariant: a device that is taken from a driver
is given back to the same one, or the text of the error says where it is now.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from pagepool.dma.vfio.hints import NO_IOMMU, NOT_BOUND, hint
from pagepool.errors import DeviceError

__all__ = ["VFIO_DRIVER", "PciSysfs"]

VFIO_DRIVER = "vfio-pci"
_DEVICES = Path("/sys/bus/pci/devices")
_PROBE = Path("/sys/bus/pci/drivers_probe")
_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


class PciSysfs:
    """One PCI function.

    Parameters
    ----------
    bdf : str
        Its place, ``"0000:01:00.0"`` or ``"01:00.0"``.

    Raises
    ------
    ValueError
        `bdf` is no such place.
    DeviceError
        ``ENODEV``: there is nothing at it.
    """

    def __init__(self, bdf: str) -> None:
        found = _BDF.fullmatch(bdf.lower())
        if found is None:
            raise ValueError(f"{bdf!r} is no place on the PCI bus: write it as 0000:01:00.0 (lspci -D)")
        self.bdf = f"{found[1] or '0000'}:{found[2]}:{found[3]}.{found[4]}"
        self.folder = _DEVICES / self.bdf
        if not self.folder.is_dir():
            raise DeviceError(errno.ENODEV, "find PCI device", self.bdf, "lspci -D lists those there are")

    @property
    def vendor(self) -> int:
        """PCI vendor id."""
        return int((self.folder / "vendor").read_text(), 16)

    @property
    def device(self) -> int:
        """PCI device id."""
        return int((self.folder / "device").read_text(), 16)

    @property
    def class_code(self) -> int:
        """PCI class, subclass and programming interface, 24 bits."""
        return int((self.folder / "class").read_text(), 16)

    @property
    def nid(self) -> int:
        """NUMA node it is attached to, -1 for none."""
        try:
            return int((self.folder / "numa_node").read_text())
        except OSError:
            return -1

    @property
    def driver(self) -> str:
        """Kernel driver that has it, "" for none."""
        link = self.folder / "driver"
        return link.resolve().name if link.is_symlink() else ""

    @property
    def netdevs(self) -> list[str]:
        """Network interfaces that the kernel's driver made of it."""
        return sorted(path.name for path in self.folder.glob("**/net/*"))

    @property
    def iommu_group(self) -> str:
        """Number of its IOMMU group.

        Raises
        ------
        DeviceError
            It has none: there is no IOMMU, or it is off.
        """
        link = self.folder / "iommu_group"
        if not link.is_symlink():
            raise DeviceError(errno.ENODEV, "find IOMMU group of", self.bdf, NO_IOMMU)
        return link.resolve().name

    @property
    def group_members(self) -> list[PciSysfs]:
        """All functions of its IOMMU group, itself included: they are let out to user space together."""
        return [PciSysfs(path.name) for path in sorted((self.folder / "iommu_group/devices").iterdir())]

    @property
    def held_back_by(self) -> list[PciSysfs]:
        """Functions of its IOMMU group that a driver of the kernel has: none of the group is let out meanwhile."""
        return [other for other in self.group_members if other.driver not in ("", VFIO_DRIVER, "pcieport")]

    def not_viable(self) -> DeviceError:
        """Return the error that names them."""
        names = ", ".join(f"{other.bdf} with {other.driver}" for other in self.held_back_by) or "another device"
        what = f"its devices go to user space together: unbind {names}, or bind it to vfio-pci too"
        return DeviceError(errno.EBUSY, "use IOMMU group", f"{self.iommu_group} of {self.bdf}", what)

    @property
    def vfio_cdev(self) -> str | None:
        """Path of its character device for iommufd; None where the kernel makes none."""
        names = sorted(path.name for path in (self.folder / "vfio-dev").glob("vfio*"))
        return f"/dev/vfio/devices/{names[0]}" if names else None

    def require_vfio(self) -> None:
        """Check that VFIO has it.

        Raises
        ------
        DeviceError
            ``EBUSY``: another driver has it; or ``ENODEV``: none has.
        """
        self.iommu_group  # noqa: B018 - says so itself if there is none
        driver = self.driver
        if driver == VFIO_DRIVER:
            return
        if not driver:
            raise DeviceError(errno.ENODEV, "open PCI device", self.bdf, f"no driver has it: {NOT_BOUND}, or bind=True")
        netdevs = f" (as {', '.join(self.netdevs)})" if self.netdevs else ""
        what = f"the kernel's {driver} has it{netdevs}; bind=True takes it away from there, or: {NOT_BOUND}"
        raise DeviceError(errno.EBUSY, "open PCI device", self.bdf, what)

    def bind(self, driver: str = VFIO_DRIVER) -> str:
        """Give it to another kernel driver, by ``driver_override``.

        Parameters
        ----------
        driver : str
            Which; "" for none, with the override lifted.

        Returns
        -------
        str
            The driver that had it, for giving it back; "" if none had.

        Raises
        ------
        DeviceError
            It is with the wrong driver, or with none, now.
        """
        before = self.driver
        if before == driver:
            return before
        try:
            if before:
                (self.folder / "driver/unbind").write_text(self.bdf)
            (self.folder / "driver_override").write_text(f"{driver}\n")
            if driver:
                _PROBE.write_text(self.bdf)
        except OSError as error:
            number = error.errno or errno.EIO
            raise DeviceError(number, f"bind {self.bdf} to", driver or "no driver", hint("bind", number)) from None
        if self.driver != driver:
            now = f"it is with {self.driver or 'no driver'} now; {hint('bind', errno.ENODEV)}"
            raise DeviceError(errno.ENODEV, f"bind {self.bdf} to", driver, now)
        return before

    def give_back(self, driver: str) -> None:
        """Undo `bind`: lift the override and let `driver` have it again, if there was one."""
        self.bind("")
        if driver:
            Path(f"/sys/bus/pci/drivers/{driver}/bind").write_text(self.bdf)

    def __repr__(self) -> str:
        return f"<PciSysfs {self.bdf} {self.vendor:04x}:{self.device:04x}>"


def functions() -> list[PciSysfs]:
    """Return every PCI function of the machine, in order of place."""
    return [PciSysfs(path.name) for path in sorted(_DEVICES.iterdir())] if _DEVICES.is_dir() else []

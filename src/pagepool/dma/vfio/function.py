# SPDX-License-Identifier: MIT
"""One PCI function under VFIO: its regions, configuration space, bus mastering, reset and interrupts.

The function only: what it may reach in memory is the space's business. Invariant: bus mastering is off until
somebody turns it on, and off again before the file is closed, so that the device issues no DMA on its own.

Source: PCI Local Bus Specification 3.0, section 6.2 (configuration space) and 6.7 (capabilities).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from pagepool.dma.vfio.abi import (
    CONFIG_REGION,
    DEVICE_INFO,
    REGION_INFO,
    DeviceFlag,
    RegionFlag,
    Request,
    ioctl,
)
from pagepool.dma.vfio.registers import Registers
from pagepool.errors import DeviceError

__all__ = ["PciFunction", "Region"]

PCI_COMMAND, COMMAND_MEMORY, COMMAND_BUS_MASTER = 0x04, 1 << 1, 1 << 2
PCI_STATUS, STATUS_CAPABILITIES = 0x06, 1 << 4
PCI_CAPABILITIES = 0x34


class Region(NamedTuple):
    """A part of the device file: a BAR, or configuration space."""

    flags: RegionFlag
    size_bytes: int
    offset: int


class PciFunction:
    """An open function.

    Parameters
    ----------
    fd : int
        From `IommuSpace.open_device`; it is closed here.
    bdf : str
        For error texts.

    Notes
    -----
    Context: any thread.
    """

    def __init__(self, fd: int, bdf: str) -> None:
        self.fd = fd
        self.bdf = bdf
        answer = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0, 0))
        ioctl(fd, Request.DEVICE_GET_INFO, answer, bdf)
        _, flags, _, _, _ = DEVICE_INFO.unpack(answer)
        self.flags = DeviceFlag(flags)
        self._config = self.region(CONFIG_REGION)
        self._bars: dict[int, Registers] = {}

    @property
    def can_reset(self) -> bool:
        """Whether `reset` is possible (function level reset)."""
        return DeviceFlag.RESET in self.flags

    def region(self, index: int) -> Region:
        """Return where region `index` is in the device file: 0 to 5 are the BARs."""
        answer = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        ioctl(self.fd, Request.DEVICE_GET_REGION_INFO, answer, f"{self.bdf} region {index}")
        _, flags, _, _, size_bytes, offset = REGION_INFO.unpack(answer)
        return Region(RegionFlag(flags & 7), size_bytes, offset)

    def bar(self, index: int) -> Registers:
        """Map a BAR's registers; the same object each time.

        Raises
        ------
        DeviceError
            The function has no such BAR, or it cannot be mapped (I/O ports).
        """
        if index not in self._bars:
            region = self.region(index)
            if not region.size_bytes or RegionFlag.MMAP not in region.flags:
                what = "it has no such memory BAR; those with I/O ports are not supported"
                raise DeviceError(errno.EINVAL, f"map BAR {index} of", self.bdf, what)
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            window = mmap.mmap(self.fd, region.size_bytes, mmap.MAP_SHARED, protection, offset=region.offset)
            self._bars[index] = Registers(window)
        return self._bars[index]

    def read_config(self, at: int, size_bytes: int = 2) -> int:
        """Read `size_bytes` of configuration space as a little-endian number."""
        return int.from_bytes(os.pread(self.fd, size_bytes, self._config.offset + at), "little")

    def write_config(self, at: int, value: int, size_bytes: int = 2) -> None:
        """Write configuration space; VFIO lets some of it through, emulates some, and drops the rest."""
        os.pwrite(self.fd, value.to_bytes(size_bytes, "little"), self._config.offset + at)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Yield (id, place in configuration space) of each PCI capability."""
        if not self.read_config(PCI_STATUS) & STATUS_CAPABILITIES:
            return
        at = self.read_config(PCI_CAPABILITIES, 1) & ~3
        for _ in range(48):  # as many as fit: a list that runs in a circle ends here
            if not at:
                return
            yield self.read_config(at, 1), at
            at = self.read_config(at + 1, 1) & ~3

    def enable_bus_master(self) -> None:
        """Let the device issue DMA, and answer on its BARs."""
        self.write_config(PCI_COMMAND, self.read_config(PCI_COMMAND) | COMMAND_MEMORY | COMMAND_BUS_MASTER)

    def disable_bus_master(self) -> None:
        """Stop all DMA and message-signalled interrupts of the device at its root, whatever its registers say."""
        self.write_config(PCI_COMMAND, self.read_config(PCI_COMMAND) & ~COMMAND_BUS_MASTER)

    def reset(self) -> None:
        """Reset the function.

        Raises
        ------
        DeviceError
            It cannot be (``ENOTTY``): see `can_reset`.
        """
        ioctl(self.fd, Request.DEVICE_RESET, 0, self.bdf)

    def close(self) -> None:
        """Turn bus mastering off, reset if possible, unmap the BARs, close. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            self.fd = fd
            self.disable_bus_master()
            if self.can_reset:
                self.reset()
        except OSError:
            pass  # the device is gone, or does not answer: its file is closed all the same
        finally:
            self.fd = -1
            for registers in self._bars.values():
                registers.close()
            self._bars.clear()
            os.close(fd)

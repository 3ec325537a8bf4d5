# SPDX-License-Identifier: MIT
"""Interrupts of a PCI function as eventfds: each vector makes one file descriptor readable.

Delivery only; which event raises which vector is set in the device's own registers, by its driver. Invariant:
all vectors of a function are turned on together and off together, since a kernel before 6.5 cannot add one
to MSI-X that is on.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum

from pagepool.dma.vfio.abi import IRQ_INFO, IrqFlag, Request, ioctl, pack_irq_set
from pagepool.dma.vfio.function import PciFunction
from pagepool.errors import DeviceError

__all__ = ["Interrupts", "IrqKind"]


class IrqKind(IntEnum):
    """``VFIO_PCI_*_IRQ_INDEX``: how a function interrupts."""

    INTX = 0
    MSI = 1
    MSIX = 2


def count_vectors(function: PciFunction, kind: IrqKind) -> int:
    """Return how many vectors of this kind the function has."""
    answer = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, kind, 0))
    ioctl(function.fd, Request.DEVICE_GET_IRQ_INFO, answer, f"{function.bdf} {kind.name}")
    return int(IRQ_INFO.unpack(answer)[3])


class Interrupts:
    """The vectors of one function, turned on.

    Parameters
    ----------
    function : PciFunction
        Whose.
    nr_vectors : int
        How many, from vector 0 on.
    kind : IrqKind, optional
        Which kind; by default the newest that has as many.

    Raises
    ------
    DeviceError
        ``ENOSPC``: the function has not so many.

    Attributes
    ----------
    kind : IrqKind
    fds : list of int
        One eventfd per vector, non-blocking; closed by `close`.

    Notes
    -----
    Context: any thread.
    """

    def __init__(self, function: PciFunction, nr_vectors: int = 1, kind: IrqKind | None = None) -> None:
        self.function = function
        self.fds: list[int] = []
        kinds = [kind] if kind is not None else [IrqKind.MSIX, IrqKind.MSI, IrqKind.INTX]
        counts = {k: count_vectors(function, k) for k in kinds}
        usable = [k for k in kinds if counts[k] >= nr_vectors]
        if not usable:
            have = ", ".join(f"{count} {k.name}" for k, count in counts.items())
            what = f"it has {have}: open fewer queues, or poll without interrupts"
            raise DeviceError(errno.ENOSPC, f"turn on {nr_vectors} interrupt vectors of", function.bdf, what)
        self.kind = usable[0]
        try:
            for _ in range(nr_vectors):
                self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            flags = IrqFlag.DATA_EVENTFD | IrqFlag.ACTION_TRIGGER
            self._set(flags, self.fds, nr_vectors)
        except BaseException:
            self.close()
            raise

    def clear(self, vector: int = 0) -> int:
        """Take the interrupts of a vector that have come; return how many, 0 for none. One system call."""
        try:
            count = os.eventfd_read(self.fds[vector])
        except BlockingIOError:
            return 0
        if self.kind is IrqKind.INTX:  # the line is level triggered: the kernel masks it when it fires
            self._set(IrqFlag.DATA_NONE | IrqFlag.ACTION_UNMASK, [], 1)
        return count

    def close(self) -> None:
        """Turn the vectors off and close the eventfds. Idempotent."""
        fds, self.fds = self.fds, []
        if fds and self.function.fd >= 0:
            try:
                self._set(IrqFlag.DATA_NONE | IrqFlag.ACTION_TRIGGER, [], 0)
            except DeviceError:
                pass  # they were never on, or the device is gone
        for fd in fds:
            os.close(fd)

    def _set(self, flags: IrqFlag, eventfds: list[int], count: int) -> None:
        request = pack_irq_set(flags, self.kind, 0, eventfds, count)
        ioctl(self.function.fd, Request.DEVICE_SET_IRQS, request, f"{self.function.bdf} {self.kind.name}")

# SPDX-License-Identifier: MIT
"""A BAR in this process: a device's registers, read and written in the width the device wants.

No meaning of any register. One access is one load or store of exactly that width, as a device needs it:
slices and bulk copies would be split or merged. Invariant: offsets are checked, a stray one raises
`IndexError` and never reaches another device.
"""

from __future__ import annotations

import mmap

__all__ = ["Registers"]


class Registers:
    """Registers of one BAR.

    Parameters
    ----------
    window : mmap.mmap or other writable buffer
        The BAR; a `bytearray` serves where there is no device.

    Notes
    -----
    Context: any thread; what order accesses need is the driver's business. On x86-64 stores to memory and to
    registers are seen by the device in the order they are made; a machine that reorders them needs barriers
    that Python does not have.
    """

    __slots__ = ("_8", "_16", "_32", "_window")

    def __init__(self, window: mmap.mmap | bytearray) -> None:
        self._window = window
        self._8 = memoryview(window)
        self._16 = self._8.cast("H")
        self._32 = self._8.cast("I")

    @property
    def size_bytes(self) -> int:
        """Length of the BAR."""
        return len(self._8)

    def read8(self, offset: int) -> int:
        """Read one byte."""
        return self._8[offset]

    def write8(self, offset: int, value: int) -> None:
        """Write one byte."""
        self._8[offset] = value

    def read16(self, offset: int) -> int:
        """Read 16 bits; `offset` is in bytes, as in the others, and even."""
        return self._16[_index(offset, 1)]

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits."""
        self._16[_index(offset, 1)] = value

    def read32(self, offset: int) -> int:
        """Read 32 bits."""
        return self._32[_index(offset, 2)]

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits."""
        self._32[_index(offset, 2)] = value

    def write64(self, offset: int, value: int) -> None:
        """Write 64 bits as two halves, the low one first."""
        self.write32(offset, value & 0xFFFF_FFFF)
        self.write32(offset + 4, value >> 32)

    def read64(self, offset: int) -> int:
        """Read 64 bits as two halves, the low one first."""
        low = self.read32(offset)
        return low | self.read32(offset + 4) << 32

    def close(self) -> None:
        """Unmap the BAR; every later access raises `ValueError`. Idempotent."""
        for view in (self._32, self._16, self._8):
            view.release()
        if isinstance(self._window, mmap.mmap):
            self._window.close()


def _index(offset: int, shift: int) -> int:
    if offset < 0 or offset & ((1 << shift) - 1):
        raise IndexError(f"register offset {offset:#x} is not aligned to {1 << shift} bytes")
    return offset >> shift

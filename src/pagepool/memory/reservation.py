# SPDX-License-Identifier: MIT
"""A reservation: contiguous virtual addresses that nothing else can take, with no memory behind them.

It is address space only, not memory: ``PROT_NONE``, never charged, gone when the object goes. Slabs of 2 MiB
are mapped into it (`slabs`) and taken out again (`close_hole`). Invariant: every byte of the reservation, and
a margin on both sides, is at all times either a mapped slab or a ``PROT_NONE`` hole, so that a stray store
faults instead of hitting somebody else's memory, and a slab that comes back has its old vaddr.
"""

from __future__ import annotations

import errno

from pagepool._core.mapped_range import MappedRange
from pagepool._core.params import SLAB_SIZE
from pagepool.errors import DeviceError
from pagepool.memory import _libc

_HOLE = _libc.MAP_PRIVATE | _libc.MAP_ANONYMOUS | _libc.MAP_NORESERVE


class Reservation:
    """Reserve address space, aligned to 2 MiB.

    Parameters
    ----------
    size_bytes : int
        How much; rounded up to whole slabs.

    Raises
    ------
    DeviceError
        ``ENOMEM``: the address space is limited (``ulimit -v``, RLIMIT_AS) below this.

    Notes
    -----
    Whoever holds memory of the reservation must hold the reservation: it is unmapped when the last reference
    goes, never at interpreter exit, where objects that still point into it may be torn down later (the system
    takes it back anyway).

    Context: any thread; the caller serialises slabs of the same index.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes <= 0:
            raise ValueError(f"size_bytes {size_bytes} is not positive")
        size_bytes = -(-size_bytes // SLAB_SIZE) * SLAB_SIZE
        # Two slabs more than asked: an aligned base is inside with a hole left on both sides. The holes catch
        # a store that runs over the edge, and keep the kernel from joining a neighbour's mapping with our
        # first or last slab.
        whole_bytes = size_bytes + 2 * SLAB_SIZE
        try:
            whole = _libc.mmap(0, whole_bytes, _libc.PROT_NONE, _HOLE)
        except OSError as error:
            hint = "the process may not have so many addresses: raise `ulimit -v` (RLIMIT_AS) or reserve less"
            number = error.errno or errno.ENOMEM
            raise DeviceError(number, "reserve", f"{size_bytes >> 20} MiB of address space", hint) from None
        self.base_vaddr = (whole // SLAB_SIZE + 1) * SLAB_SIZE
        self.size_bytes = size_bytes
        self._range = MappedRange(whole, whole_bytes)

    @property
    def nr_slabs(self) -> int:
        """Length in slabs of 2 MiB."""
        return self.size_bytes // SLAB_SIZE

    def slab_vaddr(self, index: int) -> int:
        """Return the vaddr of slab `index`."""
        if not 0 <= index < self.nr_slabs:
            raise IndexError(f"slab {index} is out of range: 0 to {self.nr_slabs - 1}")
        return self.base_vaddr + index * SLAB_SIZE

    def close_hole(self, index: int) -> None:
        """Take the memory of slab `index` out: its address space stays reserved, its content is lost."""
        _libc.mmap(self.slab_vaddr(index), SLAB_SIZE, _libc.PROT_NONE, _HOLE | _libc.MAP_FIXED)

    def __repr__(self) -> str:
        return f"<Reservation of {self.size_bytes >> 20} MiB at vaddr {self.base_vaddr:#x}>"

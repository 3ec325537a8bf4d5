# SPDX-License-Identifier: MIT
"""`MappedRange`: address space that is unmapped when the last reference goes, and not a moment before.

It has no finalizer of Python's, neither ``__del__`` nor `weakref.finalize`. For a cycle the garbage collector calls all
of those first, in an order of its own, also those of objects that still look into the memory. This one has no object
among its fields, so the collector does not see it: it goes when the last that refers to it is torn down.

Invariant: the range is unmapped once, and never while the interpreter ends: objects go in any order then, and the
system takes the memory back anyway.
"""

import cython
from cython.cimports.libc.stdint import uint64_t, uintptr_t
from cython.cimports.pagepool._core.atomic import pp_is_finalizing


class MappedRange:
    """Own a mapping.

    Parameters
    ----------
    vaddr, size_bytes : int
        What is mapped, from now on this object's to unmap; 0 bytes are no mapping.

    Notes
    -----
    Context: any thread; its end, too, which lets other threads run meanwhile (no GIL).
    """

    def __cinit__(self, vaddr: uintptr_t, size_bytes: uint64_t):
        self.vaddr = vaddr
        self.size_bytes = size_bytes

    def __dealloc__(self):
        if self.size_bytes and not pp_is_finalizing():
            with cython.nogil:
                munmap(cython.cast(cython.p_void, self.vaddr), self.size_bytes)

    def __reduce__(self):
        raise TypeError("a MappedRange is memory of this process and cannot be pickled")

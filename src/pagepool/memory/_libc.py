# SPDX-License-Identifier: MIT
"""The memory system calls of this room, by ctypes.

Thin: one Python function per call, integers in and out, and every failure through `_checked`, which raises an
`OSError` with the kernel's errno and what was tried. It knows nothing of slabs, kinds or pools. ctypes
releases the GIL around each call, so populating memory never stops another thread.

The three NUMA calls have no libc wrapper (libnuma is not needed): they go by number, and a machine whose
numbers are not known here behaves like a kernel without NUMA (``ENOSYS``).
"""

from __future__ import annotations

import ctypes
import errno
import mmap as _mmap
import os
import platform
from collections.abc import Sequence

PROT_NONE = 0
PROT_READ_WRITE = _mmap.PROT_READ | _mmap.PROT_WRITE
MAP_SHARED = _mmap.MAP_SHARED
MAP_PRIVATE = _mmap.MAP_PRIVATE
MAP_ANONYMOUS = _mmap.MAP_ANONYMOUS
# Not in the mmap module of every supported Python; the same on x86, Arm, RISC-V and s390.
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
MAP_HUGETLB = 0x40000
MAP_HUGE_2MB = 21 << 26
MADV_REMOVE = 9
MADV_HUGEPAGE = 14
MADV_POPULATE_WRITE = 23

MPOL_PREFERRED = 1
MPOL_BIND = 2
MPOL_F_NODE = 1 << 0
MPOL_F_ADDR = 1 << 1
MPOL_MF_MOVE = 1 << 1

_GENERIC_NUMBERS = {"mbind": 235, "get_mempolicy": 236, "move_pages": 239, "getcpu": 168}
_SYSCALL_NUMBERS = {
    "x86_64": {"mbind": 237, "get_mempolicy": 239, "move_pages": 279, "getcpu": 309},
    "aarch64": _GENERIC_NUMBERS,
    "riscv64": _GENERIC_NUMBERS,
    "loongarch64": _GENERIC_NUMBERS,
}.get(platform.machine(), {})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_MAP_FAILED = ctypes.c_void_p(-1).value


def _checked(result: int, call: str, vaddr: int = 0, size_bytes: int = 0) -> int:
    """Return `result`, or raise what errno says: the one place where a failed call becomes an exception."""
    if result != -1:
        return result
    number = ctypes.get_errno()
    what = f"{call} of {size_bytes} bytes at vaddr {vaddr:#x}" if size_bytes else call
    raise OSError(number, f"{what}: {os.strerror(number)}")


def mmap(vaddr: int, size_bytes: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map memory; return its vaddr."""
    got = _libc.mmap(vaddr, size_bytes, prot, flags, fd, offset)
    return _checked(-1 if got == _MAP_FAILED else int(got or 0), "mmap", vaddr, size_bytes)


def munmap(vaddr: int, size_bytes: int) -> None:
    """Unmap memory."""
    _checked(_libc.munmap(vaddr, size_bytes), "munmap", vaddr, size_bytes)


def mprotect(vaddr: int, size_bytes: int, prot: int) -> None:
    """Change who may touch mapped memory."""
    _checked(_libc.mprotect(vaddr, size_bytes, prot), "mprotect", vaddr, size_bytes)


def madvise(vaddr: int, size_bytes: int, advice: int) -> None:
    """Advise the kernel about mapped memory."""
    _checked(_libc.madvise(vaddr, size_bytes, advice), f"madvise({advice})", vaddr, size_bytes)


def _syscall(name: str, *args: object) -> int:
    if name not in _SYSCALL_NUMBERS:
        raise OSError(errno.ENOSYS, f"{name}: its number on {platform.machine()} is not known here")
    return _checked(_libc.syscall(ctypes.c_long(_SYSCALL_NUMBERS[name]), *args), name)


def mbind(vaddr: int, size_bytes: int, policy: int, nid: int) -> None:
    """Set the memory policy of a mapped range to one NUMA node."""
    words = nid // 64 + 1
    mask = (ctypes.c_uint64 * words)()
    mask[nid // 64] = 1 << (nid % 64)
    # The kernel counts one bit less than it is told (its get_nodes() starts with --maxnode).
    _syscall(
        "mbind",
        ctypes.c_void_p(vaddr),
        ctypes.c_ulong(size_bytes),
        ctypes.c_int(policy),
        mask,
        ctypes.c_ulong(words * 64 + 1),
        ctypes.c_uint(0),
    )


def get_mempolicy_node(vaddr: int) -> int:
    """Return the NUMA node of the page at `vaddr`; a page that is not there yet is faulted in."""
    node = ctypes.c_int(-1)
    _syscall(
        "get_mempolicy",
        ctypes.byref(node),
        None,
        ctypes.c_ulong(0),
        ctypes.c_void_p(vaddr),
        ctypes.c_ulong(MPOL_F_NODE | MPOL_F_ADDR),
    )
    return node.value


def move_pages(vaddrs: Sequence[int], nid: int | None = None) -> list[int]:
    """Return each page's NUMA node (or ``-errno``), after moving all of them to `nid` if one is given."""
    count = len(vaddrs)
    pages = (ctypes.c_void_p * count)(*vaddrs)
    nodes = None if nid is None else (ctypes.c_int * count)(*([nid] * count))
    status = (ctypes.c_int * count)()
    _syscall(
        "move_pages",
        ctypes.c_int(0),
        ctypes.c_ulong(count),
        pages,
        nodes,
        status,
        ctypes.c_int(0 if nid is None else MPOL_MF_MOVE),
    )
    return list(status)


def getcpu_node() -> int:
    """Return the NUMA node of the CPU that runs the caller."""
    node = ctypes.c_uint(0)
    _syscall("getcpu", None, ctypes.byref(node), None)
    return node.value

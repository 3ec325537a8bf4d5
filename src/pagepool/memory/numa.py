# SPDX-License-Identifier: MIT
"""NUMA nodes: which there are, where the caller runs, where memory should go and where it really went.

Policy for ranges that the caller has mapped and nobody has touched; it maps nothing itself. A kernel without
NUMA (or one whose seccomp filter hides these calls) is a machine with one node, 0: binding to it does nothing
and succeeds.
"""

from __future__ import annotations

import errno
import functools
from collections import Counter
from pathlib import Path

from pagepool._core.params import NUMA_NO_NODE, PAGE_SIZE
from pagepool.memory import _libc

_NODE_DIR = Path("/sys/devices/system/node")
_NO_NUMA = (errno.ENOSYS, errno.EPERM)


@functools.cache
def nodes() -> tuple[int, ...]:
    """Return the NUMA nodes that have memory, ascending; ``(0,)`` where the kernel has no NUMA.

    Read once: memory that is plugged in later is not seen.
    """
    for name in ("has_memory", "online"):
        try:
            found = _node_list((_NODE_DIR / name).read_text(encoding="ascii"))
        except OSError:
            continue
        if found:
            return found
    return (0,)


def _node_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format, ``0-1,3``."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def check_node(nid: int) -> int:
    """Return `nid` if there is such a node or it is ``NUMA_NO_NODE``.

    Raises
    ------
    ValueError
        No such node; the text names those there are.
    """
    if nid != NUMA_NO_NODE and nid not in nodes():
        there = ", ".join(str(node) for node in nodes())
        raise ValueError(f"there is no NUMA node {nid} with memory on this machine; nodes: {there}")
    return nid


def current_node() -> int:
    """Return the node of the CPU that runs the caller, 0 where there is no NUMA.

    Context: the answer is old as soon as it is given, unless the thread is pinned.
    """
    try:
        return _libc.getcpu_node()
    except OSError:
        return 0


def bind(vaddr: int, size_bytes: int, nid: int, *, strict: bool = False) -> None:
    """Ask for the memory of a range on one node, before it is touched.

    Parameters
    ----------
    vaddr, size_bytes : int
        A mapped range, page aligned.
    nid : int
        A node of `nodes`; ``NUMA_NO_NODE`` leaves the range to the thread's own policy.
    strict : bool
        ``True``: this node or none (``MPOL_BIND``). ``False``: this node first (``MPOL_PREFERRED``).

    Raises
    ------
    ValueError
        No such node.
    OSError
        The kernel refused; with ``strict=False``, never for want of permission or of NUMA.
    """
    check_node(nid)
    if nid == NUMA_NO_NODE or len(nodes()) == 1:
        return
    try:
        _libc.mbind(vaddr, size_bytes, _libc.MPOL_BIND if strict else _libc.MPOL_PREFERRED, nid)
    except OSError as error:
        if strict or error.errno not in _NO_NUMA:
            raise


def node_of(vaddr: int) -> int:
    """Return the node a page really is on; the page is faulted in if need be.

    ``NUMA_NO_NODE`` if there are several and the kernel will not say.
    """
    if len(nodes()) == 1:
        return nodes()[0]
    try:
        return _libc.get_mempolicy_node(vaddr)
    except OSError as error:
        if error.errno in _NO_NUMA:
            return NUMA_NO_NODE
        raise


def nodes_of(vaddr: int, size_bytes: int) -> Counter[int]:
    """Count the 4 KiB pages of a range by node, without touching them.

    Returns
    -------
    Counter
        Node -> pages. Pages that are not there yet count under ``NUMA_NO_NODE``.
    """
    return _counted(vaddr, size_bytes, None)


def move(vaddr: int, size_bytes: int, nid: int) -> Counter[int]:
    """Move the pages of a range to a node and count them as `nodes_of` does.

    Pages that a device has pinned stay where they are, and are counted there.
    """
    moved = _counted(vaddr, size_bytes, check_node(nid))
    return moved if set(moved) <= {nid} else _counted(vaddr, size_bytes, None)


def _counted(vaddr: int, size_bytes: int, nid: int | None) -> Counter[int]:
    try:
        status = _libc.move_pages(range(vaddr, vaddr + size_bytes, PAGE_SIZE), nid)
    except OSError as error:
        if error.errno not in _NO_NUMA:
            raise
        status = [nodes()[0] if len(nodes()) == 1 else NUMA_NO_NODE] * (size_bytes // PAGE_SIZE)
    return Counter(node if node >= 0 else NUMA_NO_NODE for node in status)

# SPDX-License-Identifier: MIT
"""Huge pages as the machine offers them and as it really gave them.

Reads /proc and /sys, changes nothing, allocates nothing. A file that cannot be read means "none": these
numbers explain and report, they never decide whether a slab may be tried.
"""

from __future__ import annotations

from pathlib import Path

_HUGETLB_2MB = "hugepages/hugepages-2048kB"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _hugetlb_figure(name: str, nid: int | None) -> int:
    where = "/sys/kernel/mm" if nid is None else f"/sys/devices/system/node/node{nid}"
    return int(_read(f"{where}/{_HUGETLB_2MB}/{name}") or 0)


def has_hugetlb() -> bool:
    """Whether the kernel has huge pages of 2 MiB at all."""
    return Path(f"/sys/kernel/mm/{_HUGETLB_2MB}").is_dir()


def nr_hugepages(nid: int | None = None) -> int:
    """Huge pages of 2 MiB that are set aside, on one NUMA node or on all."""
    return _hugetlb_figure("nr_hugepages", nid)


def nr_free_hugepages(nid: int | None = None) -> int:
    """Huge pages of 2 MiB that a new mapping could have now.

    Free ones, less those promised to mappings that have not touched them yet (a promise has no node).
    """
    free = _hugetlb_figure("free_hugepages", nid)
    return max(0, free - (_hugetlb_figure("resv_hugepages", None) if nid is None else 0))


def thp_setting() -> str:
    """The machine's transparent huge page setting: ``always``, ``madvise``, ``never``, or ``absent``."""
    for word in _read("/sys/kernel/mm/transparent_hugepage/enabled").split():
        if word.startswith("["):
            return word.strip("[]")
    return "absent"


def thp_bytes(first_vaddr: int, end_vaddr: int) -> int:
    """Count the private memory between two vaddrs that is backed by transparent huge pages now.

    Parameters
    ----------
    first_vaddr, end_vaddr : int
        The range; mappings that only touch it are not counted.

    Returns
    -------
    int
        Bytes. The kernel may split or collapse huge pages at any time: true when read, not for ever.

    Notes
    -----
    Reads /proc/self/smaps, which walks every page table of the process: milliseconds, for reports only.
    """
    total = 0
    inside = False
    for line in _read("/proc/self/smaps").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # "7f00-7f20 rw-p ...": the head of the next mapping
            first, _, end = name.partition("-")
            inside = int(first, 16) >= first_vaddr and int(end, 16) <= end_vaddr
        elif inside and name == "AnonHugePages:":
            total += int(rest.split()[0]) << 10
    return total

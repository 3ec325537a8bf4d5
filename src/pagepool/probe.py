# SPDX-License-Identifier: MIT
"""What this machine can do, each answer with its reason.

A probe tries the thing itself, with the smallest object there is, and takes it away again; it never concludes from a
version number. Each returns an `Answer`; ``PROBES`` lists them by the name that markers, ``--require`` and
``pagepool probe`` use. Nothing is probed at import.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

AF_XDP = 44
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_XSKMAP = 17
_CLONE_NEWNET = 0x40000000
_IOMMU_IOAS_ALLOC = (ord(";") << 8) + 0x81
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found.

    Parameters
    ----------
    ok : bool
        Whether it works here and now, for this user.
    reason : str
        What was found, or what is missing and what would help.
    """

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def _why(error: OSError, hints: dict[int, str]) -> Answer:
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    return Answer(False, f"{name}: {hints.get(number, os.strerror(number))}")


def root() -> Answer:
    """Whether this is root."""
    return Answer(True, "uid 0") if os.geteuid() == 0 else Answer(False, f"uid {os.geteuid()}; run as root")


def compiled_core() -> Answer:
    """Whether the compiled core can be imported."""
    try:
        from pagepool._core import page_pool
    except ImportError as error:
        return Answer(False, str(error))
    return Answer(True, Path(page_pool.__file__ or "built in").name)


def free_threading() -> Answer:
    """Whether this interpreter runs without a GIL."""
    running = getattr(sys, "_is_gil_enabled", None)
    if running is None or running():
        return Answer(False, f"Python {sys.version.split()[0]} has a GIL")
    return Answer(True, f"Python {sys.version.split()[0]} without a GIL")


def af_xdp() -> Answer:
    """Whether AF_XDP sockets and the map that steers frames into them can be made."""
    hints = {
        errno.EAFNOSUPPORT: "the kernel was built without CONFIG_XDP_SOCKETS",
        errno.EPERM: "needs CAP_NET_RAW for the socket, CAP_BPF and CAP_NET_ADMIN for the program",
        errno.ENOSYS: "the kernel was built without bpf(2)",
    }
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()
        os.close(_bpf_map_create())
    except OSError as error:
        return _why(error, hints)
    return Answer(True, "socket and xskmap can be made")


def _bpf_map_create() -> int:
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "bpf(2): unknown machine")
    libc = ctypes.CDLL(None, use_errno=True)
    attr = ctypes.create_string_buffer(struct.pack("IIIII", _BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 0).ljust(128, b"\0"), 128)
    fd = int(libc.syscall(number, _BPF_MAP_CREATE, attr, 128))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def netns() -> Answer:
    """Whether network namespaces can be made; the one made here goes with its thread."""
    result = 0

    def leave() -> None:
        nonlocal result
        libc = ctypes.CDLL(None, use_errno=True)
        result = ctypes.get_errno() if libc.unshare(_CLONE_NEWNET) else 0

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    if result:
        return _why(OSError(result, ""), {errno.EPERM: "needs CAP_SYS_ADMIN"})
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        return Answer(False, "pyroute2 is not installed: pip install 'pagepool[netns]'")
    return Answer(True, "can be made")


def hugetlb() -> Answer:
    """Whether 2 MiB huge pages are free, or could be reserved."""
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    knob = Path("/proc/sys/vm/nr_hugepages")
    try:
        count = int(free.read_text())
    except OSError:
        return Answer(False, "the kernel has no 2 MiB huge pages")
    if count:
        return Answer(True, f"{count} free")
    if os.access(knob, os.W_OK):
        return Answer(True, "none reserved, but this user may reserve some (vm.nr_hugepages)")
    return Answer(False, "none reserved: sysctl vm.nr_hugepages=64")


def thp() -> Answer:
    """Whether transparent huge pages can be asked for."""
    try:
        mode = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return Answer(False, "the kernel has none")
    chosen = mode.partition("[")[2].partition("]")[0]
    return Answer(chosen in ("always", "madvise"), f"mode {chosen}")


def numa() -> Answer:
    """Whether there are NUMA nodes to tell apart."""
    try:
        online = Path("/sys/devices/system/node/online").read_text().strip()
    except OSError:
        return Answer(False, "the kernel has no NUMA")
    return Answer(online not in ("", "0"), f"nodes {online}")


def memlock() -> Answer:
    """How much memory may be locked for devices; root (CAP_IPC_LOCK) is exempt."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return Answer(True, "no limit")
    return Answer(soft >= 8 << 20, f"{soft >> 10} KiB (ulimit -l)")


def vfio() -> Answer:
    """Whether a device was handed to VFIO."""
    try:
        groups = [name for name in os.listdir("/dev/vfio") if name.isdigit()]
    except OSError:
        return Answer(False, "no /dev/vfio: no IOMMU, or vfio-pci is not loaded")
    found = [f"groups {', '.join(groups)}"] if groups else []
    found += [f"devices {', '.join(_vfio_cdevs())}"] if _vfio_cdevs() else []
    return Answer(bool(found), "; ".join(found) or "no device is bound to vfio-pci")


def iommufd() -> Answer:
    """Whether I/O address spaces can be made, and VFIO's devices opened for them."""
    hints = {
        errno.ENOENT: "no /dev/iommu: the kernel was built without CONFIG_IOMMUFD, or modprobe iommufd",
        errno.EACCES: "/dev/iommu is not this user's: chown it, or run as root",
    }
    try:
        fd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _IOMMU_IOAS_ALLOC, struct.pack("=III", 12, 0, 0))
        finally:
            os.close(fd)
    except OSError as error:
        return _why(error, hints)
    cdevs = _vfio_cdevs()
    needs = "no device is bound to vfio-pci, or the kernel was built without CONFIG_VFIO_DEVICE_CDEV"
    return Answer(bool(cdevs), f"devices {', '.join(cdevs)}" if cdevs else needs)


def _vfio_cdevs() -> list[str]:
    try:
        return sorted(os.listdir("/dev/vfio/devices"))
    except OSError:
        return []


def torch() -> Answer:
    """Whether torch is installed; it is not imported, which takes seconds."""
    return _installed("torch", "torch")


def cupy() -> Answer:
    """Whether CuPy is installed, under any of its names; not whether there is a GPU for it."""
    answers = [_installed(name, "cupy-cuda13x") for name in ("cupy", "cupy-cuda13x", "cupy-cuda12x")]
    return next(filter(None, answers), answers[0])


def pyarrow() -> Answer:
    """Whether pyarrow is installed."""
    return _installed("pyarrow", "'pagepool[arrow]'")


def polars() -> Answer:
    """Whether Polars is installed."""
    return _installed("polars", "'pagepool[sql]'")


def duckdb() -> Answer:
    """Whether DuckDB is installed."""
    return _installed("duckdb", "'pagepool[sql]'")


def _installed(name: str, requirement: str) -> Answer:
    try:
        return Answer(True, f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        return Answer(False, f"{name} is not installed: pip install {requirement}")


def flow_rules() -> Answer:
    """Whether an interface here has n-tuple rules in its NIC."""
    from pagepool import ethtool

    having = []
    for _, name in socket.if_nameindex():
        try:
            state = ethtool.feature(name, ethtool.NTUPLE)
        except OSError as error:
            return _why(error, {errno.ENOENT: "the kernel was built without CONFIG_ETHTOOL_NETLINK"})
        if state.is_on or state.can_change:
            having.append(f"{name} ({'on' if state.is_on else 'off, can be switched on'})")
    return Answer(bool(having), ", ".join(having) or "no interface here has a driver with n-tuple rules")


def bpf_objects() -> Answer:
    """Whether XDP programs can be read from object files."""
    try:
        import elftools
    except ImportError:
        return Answer(False, "pyelftools is not installed: pip install 'pagepool[bpf]'")
    return Answer(True, f"by pyelftools {elftools.__version__}")


PROBES: dict[str, Callable[[], Answer]] = {
    "compiled_core": compiled_core,
    "free_threading": free_threading,
    "root": root,
    "netns": netns,
    "af_xdp": af_xdp,
    "bpf_objects": bpf_objects,
    "flow_rules": flow_rules,
    "hugetlb": hugetlb,
    "thp": thp,
    "numa": numa,
    "memlock": memlock,
    "vfio": vfio,
    "iommufd": iommufd,
    "torch": torch,
    "cupy": cupy,
    "pyarrow": pyarrow,
    "polars": polars,
    "duckdb": duckdb,
}


def probe(name: str) -> Answer:
    """Run one probe by name.

    Raises
    ------
    ValueError
        No such probe; the text lists those there are.
    """
    if name not in PROBES:
        raise ValueError(f"no probe {name!r}; there are {', '.join(PROBES)}")
    return PROBES[name]()

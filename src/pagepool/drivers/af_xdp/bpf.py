# SPDX-License-Identifier: MIT
"""The bpf(2) system call and its maps, by ctypes alone.

No libbpf, no clang. Every object here owns one file descriptor; closing it (or the death of the process) ends
the object. Programs and their links are in :mod:`.bpf_program`.

Sources: bpf(2), ``linux/bpf.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from types import TracebackType
from typing import Final, Self

from pagepool.errors import DeviceError, NotSupportedError

__all__ = ["ArrayMap", "BpfObject", "PerCpuArrayMap", "XskMap", "bpf", "nr_possible_cpus"]

_SYSCALL_NR: Final = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_MAP_TYPE_ARRAY, _MAP_TYPE_PERCPU_ARRAY, _MAP_TYPE_XSKMAP = 2, 6, 17

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_HINTS: Final = {
    errno.EPERM: "needs CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) in the initial user namespace",
    errno.ENOMEM: "out of kernel memory or over the memory cgroup's limit",
    errno.EMFILE: "too many open files; raise RLIMIT_NOFILE",
    errno.ENOSYS: "this kernel has no bpf(2)",
}


def bpf(command: int, attr: bytes, call: str, obj: str, hints: dict[int, str] | None = None) -> tuple[int, bytes]:
    """Return the result and the attributes as the kernel left them; raise DeviceError."""
    number = _SYSCALL_NR.get(platform.machine())
    if number is None:
        raise NotSupportedError("bpf(2)", f"a known system call number for {platform.machine()}")
    # 144 bytes cover every command used here; the kernel wants the bytes that it does not know to be zero.
    block = ctypes.create_string_buffer(attr.ljust(144, b"\0"), 144)
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), block, ctypes.c_uint(144))
    if result < 0:
        error = ctypes.get_errno()
        raise DeviceError(error, call, obj, {**_HINTS, **(hints or {})}.get(error, ""))
    return result, block.raw


class BpfObject:
    """Owns one bpf file descriptor.

    Context: any thread. :meth:`close` is idempotent; the descriptor is close-on-exec.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, -1 after :meth:`close`."""
        return self._fd

    def close(self) -> None:
        """Give the descriptor back; the kernel frees the object with its last reference."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class _Map(BpfObject):
    """A map with a 32-bit key."""

    def __init__(self, kind: int, value_bytes: int, nr_entries: int, name: str) -> None:
        attr = struct.pack("=IIIIIII16s", kind, 4, value_bytes, nr_entries, 0, 0, 0, name.encode()[:15])
        super().__init__(bpf(_MAP_CREATE, attr, "bpf map create", name)[0])
        self.name = name
        self.nr_entries = nr_entries

    def _element(self, command: int, call: str, key: int, value: ctypes.Array[ctypes.c_char] | None) -> None:
        raw_key = ctypes.c_uint32(key)
        vaddr = ctypes.addressof(value) if value is not None else 0
        attr = struct.pack("=IIQQQ", self._fd, 0, ctypes.addressof(raw_key), vaddr, 0)
        bpf(
            command,
            attr,
            call,
            f"{self.name}[{key}]",
            {errno.E2BIG: f"the map has {self.nr_entries} entries"},
        )

    def _get(self, key: int, size_bytes: int) -> bytes:
        value = ctypes.create_string_buffer(size_bytes)
        self._element(_MAP_LOOKUP, "bpf map lookup", key, value)
        return value.raw

    def _set(self, key: int, value: bytes) -> None:
        self._element(_MAP_UPDATE, "bpf map update", key, ctypes.create_string_buffer(value, len(value)))


class ArrayMap(_Map):
    """``nr_entries`` unsigned 64-bit words that programs and we share."""

    def __init__(self, nr_entries: int, name: str = "pp_array") -> None:
        super().__init__(_MAP_TYPE_ARRAY, 8, nr_entries, name)

    def __getitem__(self, key: int) -> int:
        return int.from_bytes(self._get(key, 8), "little" if _LITTLE else "big")

    def __setitem__(self, key: int, value: int) -> None:
        self._set(key, struct.pack("=Q", value))


class PerCpuArrayMap(_Map):
    """One entry of ``nr_words`` 64-bit counters per CPU, which programs count in without atomics."""

    def __init__(self, nr_words: int, name: str = "pp_counters") -> None:
        super().__init__(_MAP_TYPE_PERCPU_ARRAY, 8 * nr_words, 1, name)
        self.nr_words = nr_words
        self._nr_cpus = nr_possible_cpus()

    def sums(self) -> tuple[int, ...]:
        """Return each counter summed over the CPUs."""
        raw = self._get(0, 8 * self.nr_words * self._nr_cpus)
        words = struct.unpack(f"={self.nr_words * self._nr_cpus}Q", raw)
        return tuple(sum(words[index :: self.nr_words]) for index in range(self.nr_words))


class XskMap(_Map):
    """Receive queue index -> AF_XDP socket, for ``bpf_redirect_map``."""

    def __init__(self, nr_entries: int, name: str = "pp_xsks") -> None:
        super().__init__(_MAP_TYPE_XSKMAP, 4, nr_entries, name)

    def insert(self, queue: int, socket_fd: int) -> None:
        """Send the redirected frames of ``queue`` to this socket from now on."""
        self._set(queue, struct.pack("=i", socket_fd))

    def remove(self, queue: int) -> None:
        """Let the frames of ``queue`` fall back to the kernel's stack; no error if there was no socket."""
        try:
            self._element(_MAP_DELETE, "bpf map delete", queue, None)
        except DeviceError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def nr_possible_cpus() -> int:
    """Return how many slots the kernel keeps per per-CPU value (``/sys/devices/system/cpu/possible``)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return int(file.read().strip().replace("-", ",").split(",")[-1]) + 1

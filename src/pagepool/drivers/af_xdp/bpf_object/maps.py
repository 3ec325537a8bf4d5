# SPDX-License-Identifier: MIT
"""Maps of a user's program: made as the program declares them, read and written from Python by key.

Keys and values of 1, 2, 4 or 8 bytes are numbers in the machine's byte order, others are bytes; bytes are always
accepted. Invariant: no call reads or writes beyond what the kernel was told the sizes are.

Sources: bpf(2), ``linux/bpf.h``, Documentation/bpf/maps.rst.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pagepool.drivers.af_xdp.bpf import BpfObject, bpf, nr_possible_cpus
from pagepool.errors import DeviceError

__all__ = ["XSKMAP", "BpfMap", "MapDefinition"]

_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _FREEZE = 0, 1, 2, 3, 4, 22
_PER_CPU: Final = (5, 6, 10, 21)  # hash, array, LRU hash, cgroup storage
_PERF_EVENT_ARRAY: Final = 4
_SIZES: Final = (1, 2, 4, 8)
XSKMAP: Final = 17


@dataclass(frozen=True)
class MapDefinition:
    """What a map is to be.

    Attributes
    ----------
    kind : int
        ``enum bpf_map_type``.
    key_bytes, value_bytes, nr_entries, flags : int
        As ``bpf(BPF_MAP_CREATE)`` takes them.
    """

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    nr_entries: int
    flags: int = 0


class BpfMap(BpfObject):
    """A map, used like a dictionary.

    Parameters
    ----------
    definition : MapDefinition
        What to make.

    Raises
    ------
    DeviceError
        The kernel's refusal.

    Notes
    -----
    ``map[key]`` of a map that has a value for each CPU is a tuple of them, and a single value set is set for all.
    A key that is not there is a KeyError; deleting from an array is the kernel's EINVAL, for its entries are always
    there.

    Context: any thread, also while the program runs: each call is one system call, atomic for one entry.
    """

    def __init__(self, definition: MapDefinition) -> None:
        self.definition = definition
        self.name = definition.name
        nr_entries = definition.nr_entries
        if definition.kind == _PERF_EVENT_ARRAY and not nr_entries:
            nr_entries = nr_possible_cpus()
        label = "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in self.name).encode()[:15]
        sizes = (definition.key_bytes, definition.value_bytes, nr_entries)
        attr = struct.pack("=IIIIIII16s", definition.kind, *sizes, definition.flags, 0, 0, label)
        hints = {errno.EINVAL: f"{definition}: not possible", errno.E2BIG: f"{definition}: too big"}
        super().__init__(bpf(_CREATE, attr, "bpf map create", self.name, hints)[0])
        self._nr_values = nr_possible_cpus() if definition.kind in _PER_CPU else 1
        stride = definition.value_bytes
        self._stride = (stride + 7) // 8 * 8 if definition.kind in _PER_CPU else stride

    def __getitem__(self, key: int | bytes) -> int | bytes | tuple[int | bytes, ...]:
        value = ctypes.create_string_buffer(max(self._stride * self._nr_values, 1))
        self._element(_LOOKUP, "bpf map lookup", key, value)
        size = self.definition.value_bytes
        starts = range(0, self._stride * self._nr_values, self._stride) if self._stride else ()
        values = tuple(_plain(value.raw[start : start + size]) for start in starts)
        return values if self.definition.kind in _PER_CPU else values[0]

    def __setitem__(self, key: int | bytes, value: int | bytes | Sequence[int | bytes]) -> None:
        size = self.definition.value_bytes
        each = [value] * self._nr_values if isinstance(value, (int, bytes)) else list(value)
        if len(each) != self._nr_values:
            raise ValueError(f"map {self.name}: {len(each)} values, one for each of {self._nr_values} CPUs are wanted")
        raw = b"".join(_raw(one, size, f"map {self.name}: the value").ljust(self._stride, b"\0") for one in each)
        self._element(_UPDATE, "bpf map update", key, ctypes.create_string_buffer(raw, max(len(raw), 1)))

    def __delitem__(self, key: int | bytes) -> None:
        self._element(_DELETE, "bpf map delete", key, None)

    def __contains__(self, key: int | bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[int | bytes]:
        """Yield the keys; while others change the map some may come twice or not at all, but it ends."""
        size = self.definition.key_bytes
        previous: ctypes.Array[ctypes.c_char] | None = None
        for _ in range(2 * self.definition.nr_entries + 1):
            following = ctypes.create_string_buffer(max(size, 1))
            before = ctypes.addressof(previous) if previous is not None else 0
            attr = struct.pack("=IIQQ", self._open(), 0, before, ctypes.addressof(following))
            try:
                bpf(_NEXT_KEY, attr, "bpf map next key", self.name)
            except DeviceError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            yield _plain(following.raw[:size])
            previous = following

    def items(self) -> Iterator[tuple[int | bytes, int | bytes | tuple[int | bytes, ...]]]:
        """Yield keys and values; what is deleted meanwhile is left out."""
        for key in self:
            try:
                yield key, self[key]
            except KeyError:
                continue

    def sum(self, key: int | bytes) -> int:
        """Return a counter summed over the CPUs (or as it is, where there is one for all)."""
        value = self[key]
        values = value if isinstance(value, tuple) else (value,)
        return sum(int.from_bytes(one, sys.byteorder) if isinstance(one, bytes) else one for one in values)

    def freeze(self) -> None:
        """Let nobody write from here any more; the program sees constants."""
        bpf(_FREEZE, struct.pack("=I", self._open()), "bpf map freeze", self.name)

    def _open(self) -> int:
        if self._fd < 0:
            raise DeviceError(errno.EBADF, "bpf map", self.name, "it is closed, as its program is")
        return self._fd

    def _element(self, command: int, call: str, key: int | bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        raw = _raw(key, self.definition.key_bytes, f"map {self.name}: the key")
        buffer = ctypes.create_string_buffer(raw, max(len(raw), 1))
        vaddr = ctypes.addressof(value) if value is not None else 0
        attr = struct.pack("=IIQQQ", self._open(), 0, ctypes.addressof(buffer), vaddr, 0)
        hints = {errno.E2BIG: f"the map is full, or has no more than {self.definition.nr_entries} entries"}
        try:
            bpf(command, attr, call, f"{self.name}[{key!r}]", hints)
        except DeviceError as error:
            if error.errno == errno.ENOENT:
                raise KeyError(key) from None
            raise

    def __repr__(self) -> str:
        wanted = self.definition
        return f"<BpfMap {self.name}: {wanted.key_bytes} -> {wanted.value_bytes} bytes, {wanted.nr_entries} entries>"


def _raw(value: int | bytes, size_bytes: int, what: str) -> bytes:
    if isinstance(value, int):
        if size_bytes not in _SIZES:
            raise TypeError(f"{what} is {size_bytes} bytes: give it as bytes")
        try:
            return value.to_bytes(size_bytes, sys.byteorder, signed=value < 0)
        except OverflowError:
            raise ValueError(f"{what} {value} does not fit {size_bytes} bytes") from None
    raw = bytes(value)
    if len(raw) != size_bytes:
        raise ValueError(f"{what} is {size_bytes} bytes, not {len(raw)}")
    return raw


def _plain(raw: bytes) -> int | bytes:
    return int.from_bytes(raw, sys.byteorder) if len(raw) in _SIZES else raw

# SPDX-License-Identifier: MIT
"""As much of BTF as it takes to read map definitions: the variables of a data section, their types and sizes.

Only reading; nothing of it goes to the kernel. Invariant: a length or an index of the file is checked before it is
followed, so a damaged file is an error and never an endless loop.

Sources: Documentation/bpf/btf.rst; how libbpf declares maps (``__uint``, ``__type`` in ``bpf/bpf_helpers.h``).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Btf", "BtfError", "Member"]

_MAGIC: Final = 0xEB9F
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_EXTRA_BYTES: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_BYTES_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_WITHOUT_MEANING: Final = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_SIZED: Final = (_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64)
_DEEPEST: Final = 32


class BtfError(ValueError):
    """The section is damaged, or means something that is not known here."""


@dataclass(frozen=True)
class _Type:
    kind: int
    name: str
    nr_members: int
    size_or_type: int
    extra: bytes


@dataclass(frozen=True)
class Member:
    """A member of a struct: its name, and the id of its type."""

    name: str
    type_id: int


class Btf:
    """The types of one ``.BTF`` section.

    Raises
    ------
    BtfError
        It is damaged, of the other byte order, or has a kind of type that is not known here.
    """

    def __init__(self, raw: bytes) -> None:
        try:
            magic, _, _, header, types_at, types_size, strings_at, strings_size = struct.unpack_from("=HBBIIIII", raw)
        except struct.error:
            raise BtfError("shorter than its header") from None
        if magic != _MAGIC:
            raise BtfError(f"magic {magic:#x}: of the other byte order, or no BTF")
        self._strings = raw[header + strings_at : header + strings_at + strings_size]
        self._types = [_Type(0, "", 0, 0, b"")]  # id 0 is void
        self._read(raw[header + types_at : header + types_at + types_size])

    def _read(self, raw: bytes) -> None:
        at = 0
        while at + 12 <= len(raw):
            name, info, size_or_type = struct.unpack_from("=III", raw, at)
            kind, nr_members = info >> 24 & 0x1F, info & 0xFFFF
            if not _INT <= kind <= _ENUM64:
                raise BtfError(f"type {len(self._types)} has kind {kind}, which is not known here")
            at += 12
            extra = raw[at : at + _EXTRA_BYTES.get(kind, 0) + nr_members * _BYTES_EACH.get(kind, 0)]
            at += len(extra)
            self._types.append(_Type(kind, self._string(name), nr_members, size_or_type, extra))

    def variables(self, section: str) -> Iterator[Member]:
        """Yield the variables of a data section."""
        for found in self._types:
            if found.kind == _DATASEC and found.name == section:
                for type_id, _, _ in self._triples(found):
                    variable = self._type(type_id)
                    if variable.kind == _VAR:
                        yield Member(variable.name, variable.size_or_type)

    def members(self, type_id: int) -> list[Member]:
        """Return the members of a struct."""
        found = self._meaning(type_id)
        if found.kind != _STRUCT:
            raise BtfError("not a struct")
        return [Member(self._string(name), member) for name, member, _ in self._triples(found)]

    def number(self, type_id: int) -> int:
        """Return the number that ``__uint(name, number)`` declares: the length of an array that is pointed at."""
        found = self._meaning(self._pointed_at(type_id))
        if found.kind != _ARRAY:
            raise BtfError("not declared by __uint()")
        return int(struct.unpack_from("=III", found.extra)[2])

    def pointed_size(self, type_id: int) -> int:
        """Return the bytes of the type that ``__type(name, type)`` declares."""
        return self._size(self._pointed_at(type_id))

    def _pointed_at(self, type_id: int) -> int:
        found = self._meaning(type_id)
        if found.kind != _PTR:
            raise BtfError("not declared by __uint() or __type()")
        return found.size_or_type

    def _size(self, type_id: int, depth: int = 0) -> int:
        found = self._meaning(type_id)
        if found.kind in _SIZED:
            return found.size_or_type
        if found.kind == _PTR:
            return 8
        if found.kind == _ARRAY and len(found.extra) == 12 and depth < _DEEPEST:
            element, _, nr_elements = struct.unpack("=III", found.extra)
            return int(nr_elements) * self._size(element, depth + 1)
        raise BtfError("a type without a size")

    def _meaning(self, type_id: int) -> _Type:
        for _ in range(_DEEPEST):
            found = self._type(type_id)
            if found.kind not in _WITHOUT_MEANING:
                return found
            type_id = found.size_or_type
        raise BtfError("types that name each other in a circle")

    def _type(self, type_id: int) -> _Type:
        if type_id >= len(self._types):
            raise BtfError(f"no type {type_id}")
        return self._types[type_id]

    def _triples(self, found: _Type) -> Iterator[tuple[int, int, int]]:
        if len(found.extra) != 12 * found.nr_members:
            raise BtfError(f"{found.name or 'a type'} is cut short")
        yield from struct.iter_unpack("=III", found.extra)

    def _string(self, at: int) -> str:
        end = self._strings.find(b"\0", at)
        return self._strings[at:end].decode(errors="replace") if end >= 0 else ""

    def __repr__(self) -> str:
        return f"<Btf of {len(self._types) - 1} types, {sys.byteorder} endian>"

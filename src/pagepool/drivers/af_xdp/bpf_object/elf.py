# SPDX-License-Identifier: MIT
"""A BPF object file, read: its functions, where they refer to something else, and the maps that it declares.

It opens no map and loads nothing. Everything that is found but not understood is an `ObjectFileError` that names it:
a program that ran without half of what it meant would be worse than none.

Sources: ELF; Documentation/bpf/llvm_reloc.rst; libbpf's program types and ELF sections. The file format itself is read
by pyelftools (the ``bpf`` extra).
"""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.drivers.af_xdp.bpf_object.btf import Btf, BtfError
from pagepool.drivers.af_xdp.bpf_object.maps import MapDefinition
from pagepool.errors import DeviceError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

__all__ = ["Function", "ObjectFile", "ObjectFileError", "Reference"]

_R_64_64, _R_64_32 = 1, 10
_DATA_SECTIONS: Final = (".rodata", ".data", ".bss")
_ARRAY: Final = 2
_F_RDONLY_PROG: Final = 1 << 7
_EXECUTABLE: Final = 0x4
_LARGEST_BYTES: Final = 1 << 26
# pyelftools meets damage with whatever it stumbles on
_DAMAGE: Final = (struct.error, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
_NUMBERS: Final = ("type", "max_entries", "key_size", "value_size", "map_flags")
_NOT_HERE: Final = {
    "values": "maps of maps and prepared program arrays are not supported",
    "pinning": "pinned maps are not supported: the maps live as long as the program",
}


class ObjectFileError(ValueError):
    """The object file cannot be used; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class Reference:
    """An instruction that refers to something by name.

    Attributes
    ----------
    at : int
        Index of the instruction in its section.
    kind : {"map", "data", "call"}
        A map, a byte of a data section (also made a map), a function.
    name : str
        Of the map or data section; of the section of the function.
    offset : int
        Bytes into the data section; index of the function's first instruction in its section.
    """

    at: int
    kind: str
    name: str
    offset: int = 0


@dataclass(frozen=True)
class Function:
    """A function: instructions ``first`` to ``first + nr`` of a section."""

    name: str
    section: str
    first: int
    nr: int


@dataclass
class ObjectFile:
    """What a file has.

    Attributes
    ----------
    functions : list of Function
        In file order.
    code : dict of str to bytes
        The sections with instructions.
    references : dict of str to list of Reference
        By section.
    maps : dict of str to MapDefinition
        Declared maps, and one for each data section.
    contents : dict of str to bytes
        What the maps of data sections hold at the start.
    licence : bytes
        Of the ``license`` section.
    """

    path: str
    functions: list[Function] = field(default_factory=list)
    code: dict[str, bytes] = field(default_factory=dict)
    references: dict[str, list[Reference]] = field(default_factory=dict)
    maps: dict[str, MapDefinition] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    licence: bytes = b""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ObjectFile:
        """Read a file.

        Raises
        ------
        ObjectFileError
            It is no BPF object, or has something that is not supported.
        OSError
            It cannot be opened.
        DeviceError
            ENOPKG: pyelftools is not installed.
        """
        try:
            from elftools.common.exceptions import ELFError
            from elftools.elf.elffile import ELFFile
        except ImportError:
            raise DeviceError(errno.ENOPKG, "import", "pyelftools", "pip install 'pagepool[bpf]'") from None
        found = cls(os.fspath(path))
        raw = Path(path).read_bytes()
        try:
            _Reader(found, ELFFile(io.BytesIO(raw))).read()
        except ObjectFileError:
            raise
        except _DAMAGE as error:
            raise ObjectFileError(f"{found.path}: not an ELF object, or damaged: {error}") from None
        except ELFError as error:
            raise ObjectFileError(f"{found.path}: not an ELF object: {error}") from None
        return found


class _Reader:
    def __init__(self, found: ObjectFile, elf: ELFFile) -> None:
        self._found = found
        self._elf = elf
        machine, order = elf["e_machine"], "little" if elf.little_endian else "big"
        if machine != "EM_BPF":
            raise self._error(f"it is for {machine}, not BPF: compile it with clang -target bpf")
        if order != sys.byteorder:
            raise self._error(f"it is {order} endian, and this machine is not: compile it with clang -target bpf")
        self._sections: list[Any] = list(elf.iter_sections())
        for section in self._sections:
            size, at = section["sh_size"], section["sh_offset"]
            if size > _LARGEST_BYTES or (section["sh_type"] != "SHT_NOBITS" and at + size > elf.stream_len):
                raise self._error(f"section {section.name} is cut short or too large: {size} bytes")
        table: Any = elf.get_section_by_name(".symtab")
        if table is None:
            raise self._error("it has no symbols: do not strip them")
        self._symbols: list[Any] = list(table.iter_symbols())

    def read(self) -> None:
        """Fill the object file."""
        found = self._found
        self._refuse_core()
        for section in self._sections:
            name = section.name
            if section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & _EXECUTABLE and section["sh_size"]:
                found.code[name] = section.data()
                if len(found.code[name]) % 8:
                    raise self._error(f"section {name} is no whole number of instructions")
            elif name == "license":
                found.licence = section.data().split(b"\0")[0]
            elif name == "maps":
                self._old_maps(section.data())
            elif name == ".maps":
                self._btf_maps()
            elif name.startswith(_DATA_SECTIONS) and section["sh_size"]:
                flags = _F_RDONLY_PROG if name.startswith(".rodata") else 0
                found.maps[name] = MapDefinition(name, _ARRAY, 4, section["sh_size"], 1, flags)
                found.contents[name] = bytes(section["sh_size"]) if name.startswith(".bss") else section.data()
        for symbol in self._symbols:
            if symbol["st_info"]["type"] == "STT_FUNC" and (name := self._section_of(symbol)) in found.code:
                first, nr = symbol["st_value"] // 8, symbol["st_size"] // 8
                if not nr or 8 * (first + nr) > len(found.code[name]):
                    raise self._error(f"function {symbol.name} is not inside its section")
                found.functions.append(Function(symbol.name, name, first, nr))
        found.functions.sort(key=lambda function: (function.section, function.first))
        for section in self._sections:
            if section["sh_type"] in ("SHT_REL", "SHT_RELA"):
                target = self._elf.get_section(section["sh_info"]).name
                if target in found.code:
                    found.references[target] = [self._reference(one, target) for one in section.iter_relocations()]

    def _refuse_core(self) -> None:
        section = self._elf.get_section_by_name(".BTF.ext")
        if section is None or section["sh_size"] < 32:
            return
        header_bytes, *_, core_bytes = struct.unpack_from("=4xI4x4x4x4x4xI", section.data())
        if header_bytes >= 32 and core_bytes > 4:
            raise self._error("it has CO-RE relocations (vmlinux.h, preserve_access_index): not supported")

    # -- maps ---------------------------------------------------------------------------------------------------

    def _old_maps(self, raw: bytes) -> None:
        """Read ``struct bpf_map_def``: type, key_size, value_size, max_entries, map_flags."""
        symbols = [one for one in self._symbols if self._section_of(one) == "maps" and one.name]
        size = len(raw) // len(symbols) if symbols else 0
        for symbol in symbols:
            at = symbol["st_value"]
            if size < 20 or at + size > len(raw):
                raise self._error(f"map {symbol.name} is no struct bpf_map_def")
            kind, key_bytes, value_bytes, nr_entries, flags = struct.unpack_from("=5I", raw, at)
            if any(raw[at + 20 : at + size]):
                raise self._error(f"map {symbol.name} has more than the five members of struct bpf_map_def")
            self._found.maps[symbol.name] = MapDefinition(symbol.name, kind, key_bytes, value_bytes, nr_entries, flags)

    def _btf_maps(self) -> None:
        section = self._elf.get_section_by_name(".BTF")
        if section is None:
            raise self._error("its maps are declared in .maps, which takes BTF to read: compile it with clang -g")
        try:
            btf = Btf(section.data())
            for variable in btf.variables(".maps"):
                self._found.maps[variable.name] = self._btf_map(btf, variable.name, variable.type_id)
        except BtfError as error:
            raise self._error(f"its BTF: {error}") from None

    def _btf_map(self, btf: Btf, name: str, type_id: int) -> MapDefinition:
        numbers = dict.fromkeys(_NUMBERS, 0)
        for member in btf.members(type_id):
            if member.name in _NOT_HERE:
                raise self._error(f"map {name}: {_NOT_HERE[member.name]}")
            if member.name in ("key", "value"):
                numbers[f"{member.name}_size"] = btf.pointed_size(member.type_id)
            elif member.name in numbers:
                numbers[member.name] = btf.number(member.type_id)
            else:
                raise self._error(f"map {name} has a member {member.name!r} that is not known here")
        kind, nr_entries, key_bytes, value_bytes, flags = numbers.values()
        return MapDefinition(name, kind, key_bytes, value_bytes, nr_entries, flags)

    # -- references ---------------------------------------------------------------------------------------------

    def _reference(self, relocation: Any, section: str) -> Reference:
        at, symbol = relocation["r_offset"] // 8, self._symbols[relocation["r_info_sym"]]
        kind = relocation["r_info_type"]
        target = self._section_of(symbol)
        code = self._found.code[section]
        if 8 * at + 8 > len(code):
            raise self._error(f"section {section}: a relocation beyond its end")
        name = symbol.name or target
        (immediate,) = struct.unpack_from("=i", code, 8 * at + 4)
        if not target:
            raise self._error(f"{name!r} is extern (a kernel function or setting, or never defined): not supported")
        if kind == _R_64_32 and target in self._found.code:
            return Reference(at, "call", target, symbol["st_value"] // 8 + immediate + 1)
        if kind == _R_64_64 and target in ("maps", ".maps"):
            if name not in self._found.maps:
                raise self._error(f"section {section} refers to {name!r}, which is no map")
            return Reference(at, "map", name)
        if kind == _R_64_64 and target in self._found.contents:
            return Reference(at, "data", target, symbol["st_value"] + immediate)
        if kind == _R_64_64 and target in self._found.code:
            raise self._error(f"section {section} takes the place of function {name!r} (a callback): not supported")
        raise self._error(f"section {section}: a relocation of type {kind} to {name!r} in {target} is not known here")

    def _section_of(self, symbol: Any) -> str:
        index = symbol["st_shndx"]
        return self._sections[index].name if isinstance(index, int) and index < len(self._sections) else ""

    def _error(self, text: str) -> ObjectFileError:
        return ObjectFileError(f"{self._found.path}: {text}")

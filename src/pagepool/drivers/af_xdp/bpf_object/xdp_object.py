# SPDX-License-Identifier: MIT
"""`XdpObject`: a user's XDP program with its maps made, ready to be attached by the queues of one interface.

It picks the program and its XSKMAP, makes the maps, puts their descriptors into the code and loads it. Attaching is the
steering's. Invariant: after a failed construction, and after `XdpObject.close`, no descriptor of it is open.

Sources: ``linux/bpf.h`` (pseudo instructions), Documentation/bpf/libbpf/program_types.rst (section names).
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from pagepool.drivers.af_xdp.bpf import BpfObject, XskMap
from pagepool.drivers.af_xdp.bpf_object.elf import Function, ObjectFile, ObjectFileError, Reference
from pagepool.drivers.af_xdp.bpf_object.maps import XSKMAP, BpfMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram

__all__ = ["XdpObject"]

_CALL, _LOAD_64 = 0x85, 0x18
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE, _PSEUDO_CALL = 1, 2, 1
_USUAL_NAME: Final = "xsks_map"  # libxdp's


class XdpObject:
    """Read an object file and make its maps.

    Parameters
    ----------
    path : str or path-like
        An ELF file, as ``clang -O2 -g -target bpf -c`` makes it.
    name : str, optional
        The function to use; by default the only one in a section ``xdp`` or ``xdp.frags`` (also ``xdp/...``).

    Raises
    ------
    ObjectFileError
        It is no BPF object, has no XDP program or more than one, no XSKMAP, or something that is not supported.
    OSError, DeviceError
        It cannot be read; the kernel does not make a map; pyelftools is not installed.

    Attributes
    ----------
    maps : dict of str to BpfMap
        Every map but the XSKMAP; data sections by their names (``.bss``, ``.data``, ``.rodata``).
    xsks : XskMap
        The map that the queues put their sockets into, by receive queue index: ``xsks_map``, or the only XSKMAP.
    name : str
        Of the program.
    frags : bool
        It understands frames in several buffers.

    Notes
    -----
    One object serves one interface: its XSKMAP has a place for each queue number.

    Context: any thread.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self._file = file = ObjectFile.read(path)
        self.path = file.path
        self._main = self._choose(name)
        self.name = self._main.name
        self.frags = self._main.section.startswith("xdp.frags")
        xsks = self._choose_xsks()
        self.maps: dict[str, BpfMap] = {}
        with ExitStack() as undo:
            self.xsks = undo.enter_context(XskMap(file.maps[xsks].nr_entries, xsks))
            for each, definition in file.maps.items():
                if each != xsks:
                    self.maps[each] = undo.enter_context(BpfMap(definition))
            for each, raw in file.contents.items():
                self.maps[each][0] = raw
                if each.startswith(".rodata"):
                    self.maps[each].freeze()
            self._code = self._assemble()
            self._undo = undo.pop_all()

    def load(self, wrapper: bytes = b"") -> XdpProgram:
        """Load the program.

        Parameters
        ----------
        wrapper : bytes
            Instructions in front of it, which call what comes behind their end; b"" for the program alone.

        Raises
        ------
        DeviceError
            With the end of the verifier's log.
        """
        return XdpProgram(wrapper + self._code, self.name, frags=self.frags, licence=self._file.licence)

    def close(self) -> None:
        """Give the maps up; an attached program keeps its own hold on them. Idempotent."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<XdpObject {self.path}, program {self.name}, maps {', '.join(self.maps) or 'none'}>"

    # -- choosing -----------------------------------------------------------------------------------------------

    def _choose(self, name: str | None) -> Function:
        found = [one for one in self._file.functions if _is_xdp(one.section)]
        there = _listed(self._file.functions) or "no function"
        if not found:
            raise ObjectFileError(f"{self._file.path}: no program in a section named xdp; it has {there}")
        if name is not None:
            found = [one for one in found if one.name == name]
            if not found:
                raise ObjectFileError(f"{self._file.path}: no XDP program {name!r}; it has {there}")
        if len(found) > 1:
            raise ObjectFileError(f"{self._file.path}: more than one XDP program, say which: {_listed(found)}")
        return found[0]

    def _choose_xsks(self) -> str:
        found = [name for name, definition in self._file.maps.items() if definition.kind == XSKMAP]
        if _USUAL_NAME in found:
            return _USUAL_NAME
        if len(found) != 1:
            what = f"several ({', '.join(found)}), none named {_USUAL_NAME}" if found else "none"
            raise ObjectFileError(f"{self._file.path}: its sockets need one BPF_MAP_TYPE_XSKMAP, and it has {what}")
        return found[0]

    # -- joining ------------------------------------------------------------------------------------------------

    def _assemble(self) -> bytes:
        """Join the program and the functions that it calls, each once, and put places and descriptors in."""
        functions = [self._main]
        calls: list[tuple[int, Function]] = []
        code = bytearray()
        starts: list[int] = []
        for function in functions:  # grows while it runs
            starts.append(len(code) // 8)
            for at, target in self._place(function, code):
                calls.append((at, target))
                if target not in functions:
                    functions.append(target)
        for at, target in calls:
            struct.pack_into("=i", code, 8 * at + 4, starts[functions.index(target)] - at - 1)
        return bytes(code)

    def _place(self, function: Function, code: bytearray) -> list[tuple[int, Function]]:
        """Append a function with its maps in place; return its calls: index in `code`, and whom."""
        start = len(code) // 8
        code += self._file.code[function.section][8 * function.first : 8 * (function.first + function.nr)]
        references = {one.at - function.first: one for one in self._file.references.get(function.section, [])}
        calls: list[tuple[int, Function]] = []
        index = 0
        while index < function.nr:
            opcode, registers = code[8 * (start + index)], code[8 * (start + index) + 1]
            reference = references.get(index)
            if opcode == _CALL and registers >> 4 == _PSEUDO_CALL:
                calls.append((start + index, self._called(function, index, reference, code)))
            elif reference is not None:
                self._put_map(reference, 8 * (start + index), code)
            index += 2 if opcode == _LOAD_64 else 1
        return calls

    def _called(self, function: Function, index: int, reference: Reference | None, code: bytearray) -> Function:
        if reference is not None:
            section, first = reference.name, reference.offset
        else:
            at = function.first + index
            (immediate,) = struct.unpack_from("=i", self._file.code[function.section], 8 * at + 4)
            section, first = function.section, at + immediate + 1
        for one in self._file.functions:
            if one.section == section and one.first == first:
                return one
        raise ObjectFileError(f"{self.path}: {function.name} calls {section}+{8 * first}, where no function begins")

    def _put_map(self, reference: Reference, at: int, code: bytearray) -> None:
        if code[at] != _LOAD_64 or at + 16 > len(code):
            raise ObjectFileError(f"{self.path}: {reference.name} is referred to by something else than a 64-bit load")
        found: BpfObject = self.xsks if reference.name == self.xsks.name else self.maps[reference.name]
        pseudo = _PSEUDO_MAP_VALUE if reference.kind == "data" else _PSEUDO_MAP_FD
        code[at + 1] = code[at + 1] & 0x0F | pseudo << 4
        struct.pack_into("=i", code, at + 4, found.fileno())
        struct.pack_into("=i", code, at + 12, reference.offset)


def _listed(functions: list[Function]) -> str:
    return ", ".join(f"{one.name} (section {one.section})" for one in functions)


def _is_xdp(section: str) -> bool:
    stem = section.partition("/")[0]
    return stem in ("xdp", "xdp.frags") and section.partition("/")[2] not in ("devmap", "cpumap")

# SPDX-License-Identifier: MIT
"""The smallest BPF object file: one program, maps of the old kind, for machines without clang.

Source: ELF (System V ABI, chapters 4 and 5); Documentation/bpf/llvm_reloc.rst.
"""

from __future__ import annotations

import struct
from socket import htons

from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size

__all__ = ["counting_program", "object_file", "port_program"]

_XDP_PASS = 2
_XSKMAP, _ARRAY = 17, 2

_EM_BPF = 247
_PROGBITS, _SYMTAB, _STRTAB, _REL = 1, 2, 3, 9
_ALLOC, _EXECINSTR = 2, 4
_GLOBAL_FUNC, _GLOBAL_OBJECT = 0x12, 0x11


def object_file(
    code: bytes,
    maps: dict[str, tuple[int, int, int, int]],
    references: dict[int, str],
    *,
    section: str = "xdp",
    name: str = "program",
    machine: int = _EM_BPF,
    relocation: int = 1,
) -> bytes:
    """Return the bytes of an object.

    Parameters
    ----------
    code : bytes
        The program.
    maps : dict of str to tuple
        Type, key bytes, value bytes, entries of each.
    references : dict of int to str
        Index of the instruction -> map that it loads.
    """
    symbols = [b"\0" * 24]
    strings = b"\0"

    def symbol(text: str, info: int, where: int, value: int, size: int) -> None:
        nonlocal strings
        symbols.append(struct.pack("<IBBHQQ", len(strings), info, 0, where, value, size))
        strings += text.encode() + b"\0"

    symbol(name, _GLOBAL_FUNC, 1, 0, len(code))
    for index, each in enumerate(maps):
        symbol(each, _GLOBAL_OBJECT, 2, 20 * index, 20)
    places = {each: 2 + index for index, each in enumerate(maps)}
    rel = b"".join(struct.pack("<QQ", 8 * at, places[each] << 32 | relocation) for at, each in references.items())
    sections = [  # name, type, flags, bytes, link, info, entry size
        ("", 0, 0, b"", 0, 0, 0),
        (section, _PROGBITS, _ALLOC | _EXECINSTR, code, 0, 0, 0),
        ("maps", _PROGBITS, _ALLOC, b"".join(struct.pack("<5I", *one, 0) for one in maps.values()), 0, 0, 0),
        ("license", _PROGBITS, _ALLOC, b"MIT\0", 0, 0, 0),
        (".rel" + section, _REL, 0, rel, 5, 1, 16),
        (".symtab", _SYMTAB, 0, b"".join(symbols), 6, 1, 24),
        (".strtab", _STRTAB, 0, strings, 0, 0, 0),
        (".shstrtab", _STRTAB, 0, b"", 0, 0, 0),
    ]
    names = b"".join(one[0].encode() + b"\0" for one in sections)
    body, headers, at = b"", b"", 0
    for title, kind, flags, content, link, info, entry in sections:
        content = names if title == ".shstrtab" else content
        headers += struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, 64 + len(body), len(content), link, info, 8, entry)
        body += content.ljust((len(content) + 7) // 8 * 8, b"\0")
        at += len(title) + 1
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(sections), len(sections) - 1
    )
    return header + body + headers


def counting_program(**options: object) -> bytes:
    """Return a program that counts frames in ``hits[0]`` and redirects all of them by ``xsks_map``."""
    asm = Assembler()
    asm.alu(R.R6, "=", R.R1)
    asm.store(R.R10, -4, 0, Size.U32)
    asm.alu(R.R2, "=", R.R10)
    asm.alu(R.R2, "+=", -4)
    hits = len(asm)
    asm.load_u64(R.R1, 0)
    asm.call(Helper.MAP_LOOKUP_ELEM)
    asm.jump_if(R.R0, "==", 0, "redirect")
    asm.alu(R.R1, "=", 1)
    asm.fetch_add(R.R0, 0, R.R1)
    asm.label("redirect")
    asm.load(R.R2, R.R6, 16, Size.U32)
    xsks = len(asm)
    asm.load_u64(R.R1, 0)
    asm.alu(R.R3, "=", _XDP_PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.exit()
    maps = {"xsks_map": (_XSKMAP, 4, 4, 4), "hits": (_ARRAY, 4, 8, 1)}
    return object_file(asm.code(), maps, {hits: "hits", xsks: "xsks_map"}, **options)  # type: ignore[arg-type]


def port_program(port: int) -> bytes:
    """Return a program that redirects UDP over plain IPv4 to a port by ``xsks_map``, and passes all else."""
    asm = Assembler()
    asm.load(R.R2, R.R1, 0, Size.U32)  # data
    asm.load(R.R3, R.R1, 4, Size.U32)  # data_end
    asm.alu(R.R4, "=", R.R2)
    asm.alu(R.R4, "+=", 42)
    asm.jump_if(R.R4, ">", R.R3, "pass")
    for size, at, value in ((Size.U16, 12, htons(0x0800)), (Size.U8, 23, 17), (Size.U16, 36, htons(port))):
        asm.load(R.R5, R.R2, at, size)
        asm.jump_if(R.R5, "!=", value, "pass")
    asm.load(R.R2, R.R1, 16, Size.U32)
    xsks = len(asm)
    asm.load_u64(R.R1, 0)
    asm.alu(R.R3, "=", _XDP_PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.exit()
    asm.label("pass")
    asm.alu(R.R0, "=", _XDP_PASS)
    asm.exit()
    return object_file(asm.code(), {"xsks_map": (_XSKMAP, 4, 4, 4)}, {xsks: "xsks_map"})

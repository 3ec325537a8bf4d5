# SPDX-License-Identifier: MIT
"""An assembler for the few eBPF instructions that the XDP programs here use.

It turns method calls into the kernel's 8-byte instructions and resolves labels; it is no compiler, and it
checks nothing that the kernel's verifier checks better. Every jump goes forward or backward to a label that
is placed exactly once.

The encoding is RFC 9669 ("BPF Instruction Set Architecture"); helper numbers are those of ``linux/bpf.h``.
"""

from __future__ import annotations

import struct
from enum import IntEnum

__all__ = ["Assembler", "Helper", "R", "Size"]


class R(IntEnum):
    """Registers: R0 result, R1 to R5 arguments (lost in a call), R6 to R9 kept, R10 frame pointer."""

    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)


class Size(IntEnum):
    """Width of a load or store (the size bits of its opcode)."""

    U32 = 0x00
    U16 = 0x08
    U8 = 0x10
    U64 = 0x18


class Helper(IntEnum):
    """Kernel helper functions, by their stable numbers."""

    MAP_LOOKUP_ELEM = 1
    KTIME_GET_NS = 5
    REDIRECT_MAP = 51
    XDP_ADJUST_META = 54
    XDP_GET_BUFF_LEN = 188


_ALU = {"+=": 0x07, "-=": 0x17, "&=": 0x57, "|=": 0x47, "<<=": 0x67, ">>=": 0x77, "%=": 0x97, "=": 0xB7}
_JUMP = {"==": 0x15, ">": 0x25, ">=": 0x35, "&": 0x45, "!=": 0x55, "<": 0xA5, "<=": 0xB5}
_REGISTER_SOURCE = 0x08  # opcode bit: the operand is a register instead of the immediate
_WIDE = 0x03  # opcode bits that tell 64-bit arithmetic (7) from 32-bit (4), and jumps (5) from 32-bit ones (6)
_PSEUDO_MAP_FD = 1
_PSEUDO_MAP_VALUE = 2
_PSEUDO_CALL = 1


class Assembler:
    """Collects instructions; :meth:`code` resolves the labels.

    Offsets are bytes. Operands that are :class:`R` mean the register, plain ``int`` the 32-bit immediate.
    """

    def __init__(self) -> None:
        self._slots: list[tuple[int, int, int, int | str, int | str]] = []
        self._labels: dict[str, int] = {}
        self._names = 0

    def __len__(self) -> int:
        return len(self._slots)

    def new_label(self, stem: str) -> str:
        """Return a label name that is not in use."""
        self._names += 1
        return f"{stem}.{self._names}"

    def label(self, name: str) -> None:
        """Place ``name`` before the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name!r} is placed twice")
        self._labels[name] = len(self._slots)

    def alu(self, dst: R, operation: str, operand: R | int) -> None:
        """64-bit arithmetic, written as in C: ``alu(R.R2, "+=", 14)``."""
        opcode = _ALU[operation]
        if isinstance(operand, R):
            self._emit(opcode | _REGISTER_SOURCE, dst, operand)
        else:
            self._emit(opcode, dst, imm=operand)

    def alu32(self, dst: R, operation: str, operand: int) -> None:
        """32-bit arithmetic with an immediate; the upper half of ``dst`` becomes 0."""
        self._emit(_ALU[operation] ^ _WIDE, dst, imm=operand)

    def big_endian(self, dst: R, bits: int) -> None:
        """Convert the low ``bits`` (16, 32, 64) of ``dst`` between network and host order; the rest
        becomes 0.
        """
        self._emit(0xDC, dst, imm=bits)

    def load(self, dst: R, base: R, offset: int, size: Size) -> None:
        """``dst = *(size *)(base + offset)``."""
        self._emit(0x61 | size, dst, base, offset)

    def store(self, base: R, offset: int, src: R | int, size: Size) -> None:
        """``*(size *)(base + offset) = src``."""
        if isinstance(src, R):
            self._emit(0x63 | size, base, src, offset)
        else:
            self._emit(0x62 | size, base, offset=offset, imm=src)

    def fetch_add(self, base: R, offset: int, src: R) -> None:
        """Atomically add ``src`` to the 64-bit word at ``base + offset``; ``src`` becomes what was there
        before.
        """
        self._emit(0xDB, base, src, offset, imm=0x01)

    def load_map(self, dst: R, map_fd: int) -> None:
        """``dst`` = the map behind ``map_fd`` (for a helper call)."""
        self._emit(0x18, dst, _PSEUDO_MAP_FD, imm=map_fd)
        self._emit(0)

    def load_map_value(self, dst: R, map_fd: int) -> None:
        """``dst`` = pointer to the first value of an array map, no look-up needed."""
        self._emit(0x18, dst, _PSEUDO_MAP_VALUE, imm=map_fd)
        self._emit(0)

    def load_u64(self, dst: R, value: int) -> None:
        """``dst = value``, all 64 bits."""
        self._emit(0x18, dst, imm=_signed32(value & 0xFFFFFFFF))
        self._emit(0, imm=_signed32(value >> 32))

    def jump(self, label: str) -> None:
        """Go to ``label``."""
        self._emit(0x05, offset=label)

    def jump_if(self, dst: R, condition: str, operand: R | int, label: str) -> None:
        """Go to ``label`` if the unsigned 64-bit comparison holds: ``jump_if(R.R4, ">", R.R3, "short")``."""
        opcode = _JUMP[condition]
        if isinstance(operand, R):
            self._emit(opcode | _REGISTER_SOURCE, dst, operand, label)
        else:
            self._emit(opcode, dst, offset=label, imm=operand)

    def jump_if32(self, dst: R, condition: str, operand: int, label: str) -> None:
        """Go to ``label`` if the unsigned comparison of the lower 32 bits with an immediate holds."""
        self._emit(_JUMP[condition] ^ _WIDE, dst, offset=label, imm=operand)

    def call(self, helper: Helper) -> None:
        """Call a kernel helper: arguments in R1 to R5, result in R0."""
        self._emit(0x85, imm=helper)

    def call_code(self, label: str) -> None:
        """Call a function of this program: arguments in R1 to R5, result in R0, R6 to R9 kept."""
        self._emit(0x85, src=_PSEUDO_CALL, imm=label)

    def exit(self) -> None:
        """Return R0 to the kernel."""
        self._emit(0x95)

    def code(self) -> bytes:
        """Return the program, 8 bytes per instruction, with every label resolved.

        Raises
        ------
        OverflowError
            A jump is farther than its 16 bits.
        """
        out = bytearray()
        for index, (opcode, dst, src, offset, imm) in enumerate(self._slots):
            if isinstance(offset, str):
                offset = self._labels[offset] - index - 1
                if not -0x8000 <= offset < 0x8000:
                    raise OverflowError(f"a jump over {offset} instructions")
            if isinstance(imm, str):
                imm = self._labels[imm] - index - 1
            out += struct.pack("=BBhi", opcode, dst | src << 4, offset, imm)
        return bytes(out)

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int | str = 0, imm: int | str = 0) -> None:
        self._slots.append((opcode, dst, src, offset, imm))


def _signed32(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value

# SPDX-License-Identifier: MIT
"""The steering program: frames that match the filter go to the queue's socket, all others to the stack.

The program first reads the facts that the filter asks for out of the frame (each behind a bounds check that
the verifier accepts), then decides on those numbers alone; what a frame does not have (no IP, too short, a
later fragment) is a value that matches nothing. A queue without a socket, and a frame that does not match, is
``XDP_PASS``.

=========  ==========================================================
R6         the context
R7         EtherType behind at most one VLAN tag, 0: frame too short
R8         IP protocol, ``_ABSENT``: no (whole) IP header
R9         source port << 16 | destination port, or ``_ABSENT << 32``
stack      IPv4 source at -8, destination at -16, or ``_ABSENT << 32``
=========  ==========================================================
"""

from __future__ import annotations

from typing import Final, assert_never

from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size
from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.filter import (
    And,
    EtherType,
    Everything,
    Host,
    Node,
    Not,
    Or,
    Port,
    Protocol,
    parse_filter,
)

__all__ = ["COUNTER_PASSED", "COUNTER_REDIRECTED", "live_pass_code", "steering_code"]

COUNTER_REDIRECTED: Final = 0
COUNTER_PASSED: Final = 1
_COUNTER_BYPASS: Final = 2  # frames that the queue itself passed and that the generic hook is about to see again

_XDP_PASS, _XDP_REDIRECT = 2, 4
_ABSENT = 0x7FFF
_SOURCE, _DESTINATION, _KEY = -8, -16, -20
_MD_DATA, _MD_DATA_END, _MD_RX_QUEUE = 0, 4, 16  # struct xdp_md
_NOTHING, _ETHERNET, _TRANSPORT = 0, 1, 2  # how deep a filter looks


def steering_code(xsks: XskMap, counters: PerCpuArrayMap, filter: str = "all", *, generic: bool = False) -> bytes:
    """Assemble the steering program.

    Parameters
    ----------
    xsks : XskMap
        Receive queue index -> socket.
    counters : PerCpuArrayMap
        At least 3 words: redirected, passed, and the frames that :func:`live_pass_code` announced.
    filter : str
        An expression of :mod:`.filter`.
    generic : bool
        The program is for the stack's own hook, which sees a frame again after it was passed by ``pass_``.
    """
    tree = parse_filter(filter)
    asm = Assembler()
    asm.alu(R.R6, "=", R.R1)
    if generic:
        _emit_bypass(asm, counters)
    _emit_facts(asm, _depth(tree))
    _emit_test(asm, tree, "match", "pass")
    asm.label("match")
    asm.load(R.R2, R.R6, _MD_RX_QUEUE, Size.U32)
    asm.load_map(R.R1, xsks.fileno())
    asm.alu(R.R3, "=", _XDP_PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.alu(R.R7, "=", R.R0)
    asm.jump("count")
    asm.label("pass")
    asm.alu(R.R7, "=", _XDP_PASS)
    asm.label("count")
    _emit_counters(asm, counters, "out")
    passed = asm.new_label("passed")
    asm.jump_if(R.R7, "!=", _XDP_REDIRECT, passed)
    _emit_increment(asm, COUNTER_REDIRECTED)
    asm.jump("out")
    asm.label(passed)
    _emit_increment(asm, COUNTER_PASSED)
    asm.label("out")
    asm.alu(R.R0, "=", R.R7)
    asm.exit()
    return asm.code()


def live_pass_code(counters: PerCpuArrayMap, *, generic: bool = False) -> bytes:
    """Assemble the program that hands one live frame to the stack (``batch.pass_()``).

    In generic mode it tells the steering program on this CPU to let the frame by: both run in the same
    section with bottom halves off, so no other frame comes between.
    """
    asm = Assembler()
    if generic:
        _emit_counters(asm, counters, "out")
        _emit_increment(asm, _COUNTER_BYPASS)
        asm.label("out")
    asm.alu(R.R0, "=", _XDP_PASS)
    asm.exit()
    return asm.code()


def _emit_counters(asm: Assembler, counters: PerCpuArrayMap, missing: str) -> None:
    """R0 = this CPU's counters."""
    asm.store(R.R10, _KEY, 0, Size.U32)
    asm.alu(R.R2, "=", R.R10)
    asm.alu(R.R2, "+=", _KEY)
    asm.load_map(R.R1, counters.fileno())
    asm.call(Helper.MAP_LOOKUP_ELEM)
    asm.jump_if(R.R0, "==", 0, missing)


def _emit_increment(asm: Assembler, counter: int) -> None:
    asm.load(R.R1, R.R0, 8 * counter, Size.U64)
    asm.alu(R.R1, "+=", 1)
    asm.store(R.R0, 8 * counter, R.R1, Size.U64)


def _emit_bypass(asm: Assembler, counters: PerCpuArrayMap) -> None:
    _emit_counters(asm, counters, "steer")
    asm.load(R.R1, R.R0, 8 * _COUNTER_BYPASS, Size.U64)
    asm.jump_if(R.R1, "==", 0, "steer")
    asm.alu(R.R1, "-=", 1)
    asm.store(R.R0, 8 * _COUNTER_BYPASS, R.R1, Size.U64)
    asm.alu(R.R0, "=", _XDP_PASS)
    asm.exit()
    asm.label("steer")


def _depth(node: Node) -> int:
    match node:
        case Everything():
            return _NOTHING
        case EtherType():
            return _ETHERNET
        case Not(inner):
            return _depth(inner)
        case And(left, right) | Or(left, right):
            return max(_depth(left), _depth(right))
        case _:
            return _TRANSPORT


def _emit_facts(asm: Assembler, depth: int) -> None:
    """Read the facts; the code after it may use them in any order. R2 is the parse position, R3 the
    frame's end.
    """
    if depth == _NOTHING:
        return
    asm.alu(R.R7, "=", 0)
    asm.alu(R.R8, "=", _ABSENT)
    asm.alu(R.R9, "=", _ABSENT)
    asm.alu(R.R9, "<<=", 32)
    asm.store(R.R10, _SOURCE, R.R9, Size.U64)
    asm.store(R.R10, _DESTINATION, R.R9, Size.U64)
    asm.load(R.R2, R.R6, _MD_DATA, Size.U32)
    asm.load(R.R3, R.R6, _MD_DATA_END, Size.U32)
    _need(asm, 14, "facts")
    _load_be16(asm, R.R7, R.R2, 12)
    asm.jump_if(R.R7, "==", 0x8100, "vlan")
    asm.jump_if(R.R7, "!=", 0x88A8, "untagged")
    asm.label("vlan")
    _need(asm, 18, "facts")
    _load_be16(asm, R.R7, R.R2, 16)
    asm.alu(R.R2, "+=", 4)
    asm.label("untagged")
    if depth == _TRANSPORT:
        asm.alu(R.R2, "+=", 14)
        asm.jump_if(R.R7, "==", 0x0800, "ipv4")
        asm.jump_if(R.R7, "==", 0x86DD, "ipv6")
        asm.jump("facts")
        _emit_ipv4(asm)
        _emit_ipv6(asm)
        _emit_ports(asm)
    asm.label("facts")


def _emit_ipv4(asm: Assembler) -> None:
    asm.label("ipv4")
    _need(asm, 20, "facts")
    asm.load(R.R8, R.R2, 9, Size.U8)
    for offset, slot in ((12, _SOURCE), (16, _DESTINATION)):
        asm.load(R.R0, R.R2, offset, Size.U32)
        asm.big_endian(R.R0, 32)
        asm.store(R.R10, slot, R.R0, Size.U64)
    _load_be16(asm, R.R0, R.R2, 6)
    asm.alu(R.R0, "&=", 0x1FFF)  # fragment offset: only the first fragment has ports
    asm.jump_if(R.R0, "!=", 0, "facts")
    asm.load(R.R0, R.R2, 0, Size.U8)
    asm.alu(R.R0, "&=", 0x0F)
    asm.alu(R.R0, "<<=", 2)  # header length with options, 0 to 60
    asm.jump_if(R.R0, "<", 20, "facts")
    asm.alu(R.R2, "+=", R.R0)
    asm.jump("ports")


def _emit_ipv6(asm: Assembler) -> None:
    asm.label("ipv6")
    _need(asm, 40, "facts")
    asm.load(R.R8, R.R2, 6, Size.U8)
    asm.alu(R.R2, "+=", 40)


def _emit_ports(asm: Assembler) -> None:
    asm.label("ports")
    asm.jump_if(R.R8, "==", 6, "has ports")
    asm.jump_if(R.R8, "!=", 17, "facts")
    asm.label("has ports")
    _need(asm, 4, "facts")
    asm.load(R.R9, R.R2, 0, Size.U32)
    asm.big_endian(R.R9, 32)


def _emit_test(asm: Assembler, node: Node, hit: str, miss: str) -> None:
    """Jump to ``hit`` or ``miss``; the next instruction is never reached by falling through."""
    match node:
        case Everything():
            asm.alu(R.R0, "=", 0)
            asm.jump_if(R.R0, "!=", 0, miss)  # never: the verifier refuses code that no jump leads to
            asm.jump(hit)
        case EtherType(value):
            asm.jump_if(R.R7, "==", value, hit)
            asm.jump(miss)
        case Protocol(value, family):
            if family:
                asm.jump_if(R.R7, "!=", family, miss)
            asm.jump_if(R.R8, "==", value, hit)
            asm.jump(miss)
        case Port(value, end):
            if end != "dst":
                asm.alu(R.R0, "=", R.R9)
                asm.alu(R.R0, ">>=", 16)
                asm.jump_if(R.R0, "==", value, hit)
            if end != "src":
                asm.alu(R.R0, "=", R.R9)
                asm.alu(R.R0, "&=", 0xFFFF)  # absent ports give 0, which no filter asks for
                asm.jump_if(R.R0, "==", value, hit)
            asm.jump(miss)
        case Host(value, end):
            asm.load_u64(R.R1, value)
            for slot, other in ((_SOURCE, "dst"), (_DESTINATION, "src")):
                if end != other:
                    asm.load(R.R0, R.R10, slot, Size.U64)
                    asm.jump_if(R.R0, "==", R.R1, hit)
            asm.jump(miss)
        case Not(inner):
            _emit_test(asm, inner, miss, hit)
        case And(left, right):
            both = asm.new_label("and")
            _emit_test(asm, left, both, miss)
            asm.label(both)
            _emit_test(asm, right, hit, miss)
        case Or(left, right):
            second = asm.new_label("or")
            _emit_test(asm, left, hit, second)
            asm.label(second)
            _emit_test(asm, right, hit, miss)
        case _:
            assert_never(node)


def _need(asm: Assembler, size_bytes: int, otherwise: str) -> None:
    """Go to ``otherwise`` unless ``size_bytes`` from R2 are inside the frame."""
    asm.alu(R.R4, "=", R.R2)
    asm.alu(R.R4, "+=", size_bytes)
    asm.jump_if(R.R4, ">", R.R3, otherwise)


def _load_be16(asm: Assembler, dst: R, base: R, offset: int) -> None:
    asm.load(dst, base, offset, Size.U16)
    asm.big_endian(dst, 16)

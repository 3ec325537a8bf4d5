# SPDX-License-Identifier: MIT
"""The steering program: frames that match the queue's filter go to its socket, all others to the stack.

It joins what `pagepool.drivers.af_xdp.filter.code` emits for the filters to the map of sockets and to the counters. A
queue without a socket, and a frame that does not match, is ``XDP_PASS``: the stack gets it as if nothing were here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pagepool.drivers.af_xdp.arrival import emit_arrival
from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size
from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.filter.code import emit_facts, emit_test
from pagepool.drivers.af_xdp.filter.grammar import parse_filter
from pagepool.drivers.af_xdp.filter.tree import FilterError

__all__ = ["COUNTER_PASSED", "COUNTER_REDIRECTED", "live_pass_code", "steering_code", "wrapper_code"]

COUNTER_REDIRECTED: Final = 0
COUNTER_PASSED: Final = 1
_COUNTER_BYPASS: Final = 2  # frames that the queue itself passed and that the generic hook is about to see again

_XDP_PASS, _XDP_REDIRECT = 2, 4
_KEY = -8  # on the stack, beside the filter's facts
_MD_RX_QUEUE = 16  # struct xdp_md
_NO_OTHERS: Final[Mapping[int, str]] = MappingProxyType({})


def steering_code(
    xsks: XskMap,
    counters: PerCpuArrayMap,
    filter: str = "all",
    others: Mapping[int, str] = _NO_OTHERS,
    *,
    generic: bool = False,
    timestamps: bool = False,
) -> bytes:
    """Assemble the steering program.

    Parameters
    ----------
    xsks : XskMap
        Receive queue index -> socket.
    counters : PerCpuArrayMap
        At least 3 words: redirected, passed, and the frames that :func:`live_pass_code` announced.
    filter : str
        An expression of `pagepool.drivers.af_xdp.filter`, of every queue that is not in `others`.
    others : mapping of int to str
        Receive queue index -> filter.
    generic : bool
        The program is for the stack's own hook, which sees a frame again after it was passed by ``pass_``.
    timestamps : bool
        Write before each frame that goes to a socket when it came: `pagepool.drivers.af_xdp.arrival`.

    Raises
    ------
    FilterError
        A filter does not parse, or together they are too big.
    """
    nodes = {text: parse_filter(text) for text in [filter, *others.values()]}
    asm = Assembler()
    asm.alu(R.R6, "=", R.R1)
    if generic:
        _emit_bypass(asm, counters)
    emit_facts(asm, list(nodes.values()))
    if others:
        asm.load(R.R9, R.R6, _MD_RX_QUEUE, Size.U32)
    for queue, text in sorted(others.items()):
        asm.jump_if(R.R9, "==", queue, f"filter {text}")
    emit_test(asm, nodes[filter], "match", "pass")
    for text in dict.fromkeys(others.values()):
        asm.label(f"filter {text}")
        emit_test(asm, nodes[text], "match", "pass")
    asm.label("match")
    asm.load(R.R2, R.R6, _MD_RX_QUEUE, Size.U32)
    asm.load_map(R.R1, xsks.fileno())
    asm.alu(R.R3, "=", _XDP_PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.alu(R.R7, "=", R.R0)
    if timestamps:  # not on what the stack gets: GRO joins no frames whose metadata differ
        asm.jump_if(R.R7, "!=", _XDP_REDIRECT, "count")
        emit_arrival(asm)
    asm.jump("count")
    asm.label("pass")
    asm.alu(R.R7, "=", _XDP_PASS)
    asm.label("count")
    _emit_verdict(asm, counters)
    try:
        return asm.code()
    except OverflowError:
        raise FilterError(f"{len(nodes)} filters are too big together: {len(asm)} instructions") from None


def wrapper_code(counters: PerCpuArrayMap, *, generic: bool = False) -> bytes:
    """Assemble what stands before a user's program: it calls the code behind its end and counts the verdicts."""
    asm = Assembler()
    asm.alu(R.R6, "=", R.R1)
    if generic:
        _emit_bypass(asm, counters)
    asm.alu(R.R1, "=", R.R6)
    asm.call_code("user")
    asm.alu(R.R7, "=", R.R0)
    _emit_verdict(asm, counters)
    asm.label("user")
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


def _emit_verdict(asm: Assembler, counters: PerCpuArrayMap) -> None:
    """Count the verdict in R7, and return it."""
    _emit_counters(asm, counters, "out")
    asm.jump_if(R.R7, "==", _XDP_REDIRECT, "redirected")
    asm.jump_if(R.R7, "!=", _XDP_PASS, "out")
    _emit_increment(asm, COUNTER_PASSED)
    asm.jump("out")
    asm.label("redirected")
    _emit_increment(asm, COUNTER_REDIRECTED)
    asm.label("out")
    asm.alu(R.R0, "=", R.R7)
    asm.exit()


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

# SPDX-License-Identifier: MIT
"""A filter as eBPF: read the facts that it asks for out of the frame, then decide on those numbers alone.

`emit_facts` reads each behind a bounds check that the verifier accepts; what a frame does not have (no IP, cut short, a
later fragment) stays `_ABSENT`, which no test matches. `emit_test` then jumps on the facts in any order.
`pagepool.drivers.af_xdp.filter.meaning` says what is right; this file follows it.

Every fact is a 32-bit word on the stack, in the upper half of an 8-byte slot: there the verifier keeps no record of
its value, so that its search does not grow with the alternatives of a long filter. The lower halves are free. Words of
MAC and host numbers stay in network order, as do the constants that they are compared with.

=====  ==============================
R2     where it reads in the frame
R3     the frame's end
R6     the context, kept
R8     protocol while IP is read
R7     ``_ABSENT``
=====  ==============================
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, assert_never

from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size
from pagepool.drivers.af_xdp.filter.tree import (
    ARP,
    EXTENSIONS,
    IP,
    IP6,
    MAX_EXTENSIONS,
    MAX_TAGS,
    PORT_PROTOCOLS,
    RARP,
    VLAN_TYPES,
    AllOf,
    AnyOf,
    End,
    EtherHost,
    EtherType,
    Everything,
    Length,
    Net,
    Node,
    Not,
    Port,
    Protocol,
    Vlan,
)

__all__ = ["emit_facts", "emit_test"]

_ABSENT: Final = 0x7FFF_FFFF
_MD_DATA, _MD_DATA_END = 0, 4  # struct xdp_md
_FRAGMENT, _AUTHENTICATION = 44, 51


class _Fact(IntEnum):
    """What can be known of a frame; one word each."""

    LENGTH = 0
    TYPE = 1  # EtherTypes from the outside in
    TYPE_BEHIND = 2
    TYPE_BEHIND_TWO = 3
    TAG = 4
    TAG_BEHIND = 5
    MAC = 6  # three words: destination, source
    FAMILY = 9
    FIRST_PROTOCOL = 10
    PROTOCOL = 11
    SRC_PORT = 12
    DST_PORT = 13
    SRC_HOST = 14  # four words
    DST_HOST = 18  # four words


_TYPES: Final = (_Fact.TYPE, _Fact.TYPE_BEHIND, _Fact.TYPE_BEHIND_TWO)
_TAGS: Final = (_Fact.TAG, _Fact.TAG_BEHIND)
_ETHERNET_FACTS: Final = frozenset({*_TYPES, *_TAGS, _Fact.MAC})


def emit_facts(asm: Assembler, nodes: list[Node]) -> None:
    """Read what the filters ask for. R6 is the context before and after; R0 to R5, R7 and R8 are lost."""
    wanted = {fact for node in nodes for fact in _asked(node)}
    if not wanted:
        return
    asm.alu(R.R7, "=", _ABSENT)
    for fact in sorted(wanted):
        for word in range({_Fact.MAC: 3, _Fact.SRC_HOST: 4, _Fact.DST_HOST: 4}.get(fact, 1)):
            _keep(asm, fact + word, R.R7)
    if _Fact.LENGTH in wanted:
        asm.alu(R.R1, "=", R.R6)
        asm.call(Helper.XDP_GET_BUFF_LEN)
        _keep(asm, _Fact.LENGTH, R.R0)
    if wanted == {_Fact.LENGTH}:
        return
    asm.load(R.R2, R.R6, _MD_DATA, Size.U32)
    asm.load(R.R3, R.R6, _MD_DATA_END, Size.U32)
    _emit_ethernet(asm, wanted)
    if wanted - _ETHERNET_FACTS - {_Fact.LENGTH}:
        asm.jump_if(R.R8, "==", IP, "ipv4")
        asm.jump_if(R.R8, "==", IP6, "ipv6")
        asm.jump_if(R.R8, "==", ARP, "arp")
        asm.jump_if(R.R8, "==", RARP, "arp")
        asm.jump("facts")
        _emit_arp(asm, wanted)
        _emit_ipv4(asm, wanted)
        _emit_ipv6(asm, wanted)
        if _Fact.SRC_PORT in wanted:
            _emit_ports(asm)
    asm.label("facts")


def _asked(node: Node) -> Iterator[_Fact]:
    match node:
        case EtherType():
            yield from _TYPES
        case EtherHost():
            yield from (_Fact.TYPE, _Fact.MAC)
        case Vlan(_, depth):
            yield _TAGS[depth]
        case Protocol(value):
            yield from (_Fact.FAMILY, _Fact.FIRST_PROTOCOL if value in EXTENSIONS else _Fact.PROTOCOL)
        case Port():
            yield from (_Fact.SRC_PORT, _Fact.DST_PORT)
        case Net():
            yield from (_Fact.FAMILY, _Fact.SRC_HOST, _Fact.DST_HOST)
        case Length():
            yield _Fact.LENGTH
        case Not(inner):
            yield from _asked(inner)
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _asked(part)
        case Everything():
            return
        case _:
            assert_never(node)


# -- reading ----------------------------------------------------------------------------------------------------


def _emit_ethernet(asm: Assembler, wanted: set[_Fact]) -> None:
    """R8 = EtherType of the payload, R2 at it."""
    _need(asm, 14)
    if _Fact.MAC in wanted:
        for word in range(3):
            asm.load(R.R0, R.R2, 4 * word, Size.U32)
            _keep(asm, _Fact.MAC + word, R.R0)
    _load_be16(asm, R.R8, R.R2, 12)
    _keep_wanted(asm, wanted, _Fact.TYPE, R.R8)
    asm.alu(R.R2, "+=", 14)
    for depth in range(MAX_TAGS):
        tag = asm.new_label("tag")
        for kind in VLAN_TYPES:
            asm.jump_if(R.R8, "==", kind, tag)
        asm.jump("payload")
        asm.label(tag)
        _need(asm, 4)
        if _TAGS[depth] in wanted:
            _load_be16(asm, R.R0, R.R2, 0)
            asm.alu(R.R0, "&=", 0x0FFF)
            _keep(asm, _TAGS[depth], R.R0)
        _load_be16(asm, R.R8, R.R2, 2)
        _keep_wanted(asm, wanted, _TYPES[depth + 1], R.R8)
        asm.alu(R.R2, "+=", 4)
    asm.label("payload")


def _emit_arp(asm: Assembler, wanted: set[_Fact]) -> None:
    asm.label("arp")
    _need(asm, 28)
    _keep_wanted(asm, wanted, _Fact.FAMILY, R.R8)
    _emit_hosts(asm, wanted, 1, 14, 24)
    asm.jump("facts")


def _emit_ipv4(asm: Assembler, wanted: set[_Fact]) -> None:
    asm.label("ipv4")
    _need(asm, 20)
    _keep_wanted(asm, wanted, _Fact.FAMILY, R.R8)
    _emit_hosts(asm, wanted, 1, 12, 16)
    asm.load(R.R8, R.R2, 9, Size.U8)
    _keep_wanted(asm, wanted, _Fact.FIRST_PROTOCOL, R.R8)
    _keep_wanted(asm, wanted, _Fact.PROTOCOL, R.R8)
    if _Fact.SRC_PORT not in wanted:
        return asm.jump("facts")
    _load_be16(asm, R.R0, R.R2, 6)
    asm.alu(R.R0, "&=", 0x1FFF)  # fragment offset: only the first fragment has ports
    asm.jump_if(R.R0, "!=", 0, "facts")
    asm.load(R.R0, R.R2, 0, Size.U8)
    asm.alu(R.R0, "&=", 0x0F)
    asm.alu(R.R0, "<<=", 2)  # header length with options, 0 to 60
    asm.jump_if(R.R0, "<", 20, "facts")
    asm.alu(R.R2, "+=", R.R0)
    asm.jump("ports")


def _emit_ipv6(asm: Assembler, wanted: set[_Fact]) -> None:
    asm.label("ipv6")
    _need(asm, 40)
    _keep_wanted(asm, wanted, _Fact.FAMILY, R.R8)
    _emit_hosts(asm, wanted, 4, 8, 24)
    asm.load(R.R8, R.R2, 6, Size.U8)
    _keep_wanted(asm, wanted, _Fact.FIRST_PROTOCOL, R.R8)
    if not {_Fact.PROTOCOL, _Fact.SRC_PORT} & wanted:
        return asm.jump("facts")
    asm.alu(R.R2, "+=", 40)
    for _ in range(MAX_EXTENSIONS):
        extension, fragment, authentication, behind = map(asm.new_label, ("extension", "fragment", "ah", "behind"))
        asm.jump_if(R.R8, "==", _FRAGMENT, fragment)
        asm.jump_if(R.R8, "==", _AUTHENTICATION, authentication)
        for kind in EXTENSIONS:
            if kind not in (_FRAGMENT, _AUTHENTICATION):
                asm.jump_if(R.R8, "==", kind, extension)
        asm.jump("upper")
        for label, add, shift in ((extension, 1, 3), (authentication, 2, 2)):
            asm.label(label)
            _need(asm, 8)
            asm.load(R.R8, R.R2, 0, Size.U8)
            asm.load(R.R0, R.R2, 1, Size.U8)
            asm.alu(R.R0, "+=", add)
            asm.alu(R.R0, "<<=", shift)
            asm.alu(R.R2, "+=", R.R0)
            asm.jump(behind)
        asm.label(fragment)
        _need(asm, 8)
        asm.load(R.R8, R.R2, 0, Size.U8)
        _load_be16(asm, R.R0, R.R2, 2)
        asm.alu(R.R2, "+=", 8)
        asm.alu(R.R0, "&=", 0xFFF8)
        asm.jump_if(R.R0, "!=", 0, "later fragment")
        asm.label(behind)
    asm.jump("upper")
    asm.label("later fragment")
    _keep_wanted(asm, wanted, _Fact.PROTOCOL, R.R8)
    asm.jump("facts")
    asm.label("upper")
    _keep_wanted(asm, wanted, _Fact.PROTOCOL, R.R8)


def _emit_ports(asm: Assembler) -> None:
    asm.label("ports")
    for protocol in PORT_PROTOCOLS:
        asm.jump_if(R.R8, "==", protocol, "has ports")
    asm.jump("facts")
    asm.label("has ports")
    _need(asm, 4)
    for fact, offset in ((_Fact.SRC_PORT, 0), (_Fact.DST_PORT, 2)):
        _load_be16(asm, R.R0, R.R2, offset)
        _keep(asm, fact, R.R0)


def _emit_hosts(asm: Assembler, wanted: set[_Fact], nr_words: int, src: int, dst: int) -> None:
    if _Fact.SRC_HOST not in wanted:
        return
    for fact, offset in ((_Fact.SRC_HOST, src), (_Fact.DST_HOST, dst)):
        for word in range(nr_words):
            asm.load(R.R0, R.R2, offset + 4 * word, Size.U32)
            _keep(asm, fact + word, R.R0)


def _need(asm: Assembler, size_bytes: int) -> None:
    """Be done with the facts unless `size_bytes` from R2 are inside the frame."""
    asm.alu(R.R4, "=", R.R2)
    asm.alu(R.R4, "+=", size_bytes)
    asm.jump_if(R.R4, ">", R.R3, "facts")


def _load_be16(asm: Assembler, dst: R, base: R, offset: int) -> None:
    asm.load(dst, base, offset, Size.U16)
    asm.big_endian(dst, 16)


def _keep_wanted(asm: Assembler, wanted: set[_Fact], fact: _Fact, register: R) -> None:
    if fact in wanted:
        _keep(asm, fact, register)


def _keep(asm: Assembler, fact: int, register: R) -> None:
    asm.store(R.R10, _place(fact), register, Size.U32)


def _place(fact: int) -> int:
    return -8 * (fact + 1) + 4


# -- deciding ---------------------------------------------------------------------------------------------------


def emit_test(asm: Assembler, node: Node, hit: str, miss: str) -> None:
    """Jump to `hit` or `miss`; the next instruction is never reached by falling through. R0 is lost."""
    match node:
        case Everything():
            _never(asm, miss)
            asm.jump(hit)
        case EtherType(value):
            for fact in _TYPES:
                _recall(asm, fact)
                asm.jump_if(R.R0, "==", value, hit)
            asm.jump(miss)
        case EtherHost(mac, bits, end):
            _recall(asm, _Fact.TYPE)
            asm.jump_if(R.R0, "==", _ABSENT, miss)

            def mac_at(dst: bool, hit: str, miss: str) -> None:
                pad = (b"", bytes(6)) if dst else (bytes(6), b"")
                _test_masked(asm, _Fact.MAC, mac.join(pad), bits.join(pad), hit, miss)

            _test_ends(asm, end, mac_at, hit, miss)
        case Vlan(vid, depth):
            _recall(asm, _TAGS[depth])
            asm.jump_if(R.R0, "!=" if vid is None else "==", _ABSENT if vid is None else vid, hit)
            asm.jump(miss)
        case Protocol(value, family):
            if family:
                _recall(asm, _Fact.FAMILY)
                asm.jump_if(R.R0, "!=", family, miss)
            _recall(asm, _Fact.FIRST_PROTOCOL if value in EXTENSIONS else _Fact.PROTOCOL)
            asm.jump_if(R.R0, "==", value, hit)
            asm.jump(miss)
        case Port(low, high, end):

            def port_at(dst: bool, hit: str, miss: str) -> None:
                _test_range(asm, _Fact.DST_PORT if dst else _Fact.SRC_PORT, low, high, hit, miss)

            _test_ends(asm, end, port_at, hit, miss)
        case Net(net, mask, end, family):
            _test_family(asm, family, len(net), miss)

            def host_at(dst: bool, hit: str, miss: str) -> None:
                _test_masked(asm, _Fact.DST_HOST if dst else _Fact.SRC_HOST, net, mask, hit, miss)

            _test_ends(asm, end, host_at, hit, miss)
        case Length(low, high):
            _test_range(asm, _Fact.LENGTH, low, min(high, _ABSENT), hit, miss)
        case Not(inner):
            emit_test(asm, inner, miss, hit)
        case AllOf(parts):
            for part in parts[:-1]:
                following = asm.new_label("and")
                emit_test(asm, part, following, miss)
                asm.label(following)
            emit_test(asm, parts[-1], hit, miss)
        case AnyOf(parts):
            for part in parts[:-1]:
                following = asm.new_label("or")
                emit_test(asm, part, hit, following)
                asm.label(following)
            emit_test(asm, parts[-1], hit, miss)
        case _:
            assert_never(node)


def _test_ends(asm: Assembler, end: End, at: Callable[[bool, str, str], None], hit: str, miss: str) -> None:
    """Ask `at` of source and destination (False and True) as `end` wants it."""
    if end in ("src", "dst"):
        return at(end == "dst", hit, miss)
    second = asm.new_label("dst")
    if end == "either":
        at(False, hit, second)
    else:
        at(False, second, miss)
    asm.label(second)
    at(True, hit, miss)


def _test_range(asm: Assembler, fact: _Fact, low: int, high: int, hit: str, miss: str) -> None:
    _recall(asm, fact)
    asm.alu(R.R0, "-=", low)  # below it becomes huge
    asm.jump_if(R.R0, "<=", high - low, hit)
    asm.jump(miss)


def _test_family(asm: Assembler, family: int, size_bytes: int, miss: str) -> None:
    _recall(asm, _Fact.FAMILY)
    if family or size_bytes == 16:
        asm.jump_if(R.R0, "!=", family or IP6, miss)
        return
    fits = asm.new_label("family")
    asm.jump_if(R.R0, "==", IP, fits)
    asm.jump_if(R.R0, "==", ARP, fits)
    asm.jump_if(R.R0, "!=", RARP, miss)
    asm.label(fits)


def _test_masked(asm: Assembler, first: int, value: bytes, mask: bytes, hit: str, miss: str) -> None:
    words = zip(struct.unpack(f"={len(value) // 4}i", value), struct.unpack(f"={len(mask) // 4}i", mask), strict=True)
    for index, (wanted, bits) in enumerate(words):
        if bits:
            _recall(asm, first + index)
            if bits != -1:
                asm.alu32(R.R0, "&=", bits)
            asm.jump_if32(R.R0, "!=", wanted, miss)
    if not any(mask):
        _never(asm, miss)
    asm.jump(hit)


def _never(asm: Assembler, label: str) -> None:
    """Lead to `label` on paper: the verifier refuses code that no jump leads to."""
    asm.alu(R.R0, "=", 0)
    asm.jump_if(R.R0, "!=", 0, label)


def _recall(asm: Assembler, fact: int) -> None:
    asm.load(R.R0, R.R10, _place(fact), Size.U32)

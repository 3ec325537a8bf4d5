# SPDX-License-Identifier: MIT
"""The words of a filter: a part of pcap-filter(7), tcpdump's language, made into a tree.

=========================================  =============================================================================
``all``                                    every frame (also the empty filter)
``ip``, ``ip6``, ``arp``, ``rarp``         by EtherType, behind VLAN tags too
``ether proto 0x88b5``                     any EtherType, or one of the names above
``ether host``/``src``/``dst MAC``         MAC numbers; ``broadcast``, ``multicast`` (also ``ether ...``) by destination
``vlan``, ``vlan 100``                     tagged, tagged with this number; a second one in an ``and``: the tag behind
``tcp``, ``udp``, ``sctp``                 over IPv4 or IPv6; also ``ah``, ``esp``, ``pim``
``icmp``, ``igmp``, ``vrrp``, ``icmp6``    over IPv4; over IPv6
``proto N``, ``ip proto N``                any IP protocol, by number or one of these names; also ``ip6 proto N``
``port 53``, ``portrange 1-1024``          TCP, UDP or SCTP, either end, never in later fragments
``udp port 53``, ``tcp portrange 1-9``     of this protocol alone
``host 10.0.0.1``, ``host 2001:db8::1``    either end, of IP, ARP and RARP; ``ip host`` of IP alone, and so on
``net 10.0.0.0/8``, ``ip6 net fe80::/10``  a network; also ``net 10``, ``net 10.0.0.0 mask 255.0.0.0``
``src``, ``dst``, ``src and dst``          before ``host``, ``net``, ``port``, ``portrange``, or alone before a host
``ip multicast``, ``ip6 multicast``        by destination
``less 100``, ``greater 100``              frames of at most, of at least so many bytes
``not a``, ``a and b``, ``a or b``         also ``!``, ``&&``, ``||``, and parentheses
``port 80 or 443``                         a value alone repeats the words before the last value
=========================================  =============================================================================

As in tcpdump, ``and`` and ``or`` bind equally and from left to right: ``a or b and c`` is ``(a or b) and c``. ``not``
binds tightest. Unlike in tcpdump, ``vlan`` moves nothing: what stands after it means the same as before it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

from pagepool.drivers.af_xdp.filter.tree import (
    IP,
    IP6,
    MAX_TAGS,
    AllOf,
    AnyOf,
    End,
    EtherHost,
    EtherType,
    Everything,
    FilterError,
    Length,
    Net,
    Node,
    Not,
    Port,
    Protocol,
    Vlan,
)
from pagepool.drivers.af_xdp.filter.words import DIRECTED, FAMILIES, PROTOCOLS, VALUES, WITH_PORTS, Words

__all__ = ["MAX_NESTING", "MAX_PRIMITIVES", "parse_filter"]

MAX_PRIMITIVES: Final = 256
MAX_NESTING: Final = 32

_ALL_ONES: Final = b"\xff" * 6
_FAR: Final = 0xFFFF_FFFF


def parse_filter(text: str) -> Node:
    """Parse a filter expression.

    Raises
    ------
    FilterError
        With the word at which the expression stops to make sense, or because it is too big: more than 256
        primitives, or parentheses and negations more than 32 deep.
    """
    parser = _Parser(text)
    node = parser.whole()
    return _with_depths(node, 0)[0]


class _Parser:
    """Recursive descent over the words of one expression."""

    def __init__(self, text: str) -> None:
        self._words = Words(text)
        self._primitives = 0
        self._again: Callable[[], Node] = lambda: self._host("either", 0)  # what a value alone means

    # -- and, or, not -------------------------------------------------------------------------------------------

    def whole(self) -> Node:
        """Parse all of it."""
        if self._words.peek() is None:
            return Everything()
        node = self._expression(0)
        if self._words.peek() is not None:
            raise self._words.error("'and', 'or' or the end")
        return node

    def _expression(self, depth: int) -> Node:
        node = self._term(depth)
        while True:
            if self._words.take("or"):
                node = _joined(AnyOf, node, self._term(depth))
            elif self._words.take("and"):
                node = _joined(AllOf, node, self._term(depth))
            else:
                return node

    def _term(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise self._words.error(f"at most {MAX_NESTING} parentheses and negations inside each other")
        if self._words.take("not"):
            return Not(self._term(depth + 1))
        if self._words.take("("):
            node = self._expression(depth + 1)
            if not self._words.take(")"):
                raise self._words.error("')'")
            return node
        self._primitives += 1
        if self._primitives > MAX_PRIMITIVES:
            raise self._words.error(f"at most {MAX_PRIMITIVES} primitives")
        return self._primitive()

    # -- primitives ---------------------------------------------------------------------------------------------

    def _primitive(self) -> Node:
        word = self._words.peek()
        if word in DIRECTED:
            return self._directed()
        if word in FAMILIES:
            return self._of_family(self._words.word())
        if word in PROTOCOLS:
            return self._of_protocol(self._words.word())
        if self._words.take("all"):
            return Everything()
        if self._words.take("ether"):
            return self._ether()
        if self._words.take("proto"):
            return self._repeated(lambda: self._protocol(0))
        if self._words.take("vlan"):
            return self._vlan()
        if self._words.take("less"):
            return Length(0, self._words.number(0, _FAR - 1))
        if self._words.take("greater"):
            return Length(self._words.number(0, _FAR - 1), _FAR)
        if word in ("broadcast", "multicast"):
            return self._to_many()
        if self._words.is_value():
            return self._again()
        raise self._words.error("a primitive such as 'udp', 'port', 'net', 'vlan', 'ether'")

    def _of_family(self, name: str) -> Node:
        family = FAMILIES[name]
        word = self._words.peek()
        if word in ("src", "dst", "host", "net"):
            return self._directed(family=family)
        if family in (IP, IP6):
            if self._words.take("proto"):
                return self._repeated(lambda: self._protocol(family))
            if self._words.take("multicast"):
                if family == IP:  # from 224.0.0.0 to the end, as libpcap has it
                    return Net(bytes([224, 0, 0, 0]), bytes([224, 0, 0, 0]), "dst", IP)
                return Net(b"\xff" + bytes(15), b"\xff" + bytes(15), "dst", IP6)
        return EtherType(family)

    def _of_protocol(self, name: str) -> Node:
        node = PROTOCOLS[name]
        if name in WITH_PORTS and self._words.peek() in ("src", "dst", "port", "portrange"):
            return self._directed(protocol=node)
        return node

    def _ether(self) -> Node:
        if self._words.take("proto"):
            return self._repeated(self._ether_type)
        if self._words.peek() in ("broadcast", "multicast"):
            return self._to_many()
        is_said = self._words.peek() in ("src", "dst")
        end = self._end()
        if not self._words.take("host") and not is_said:
            raise self._words.error("'proto', 'host', 'src', 'dst', 'broadcast', 'multicast'")
        return self._repeated(lambda: EtherHost(self._words.mac(), end=end))

    def _ether_type(self) -> Node:
        known = FAMILIES.get((self._words.peek() or "").lstrip("\\"))
        if known is not None:
            self._words.skip()
            return EtherType(known)
        return EtherType(self._words.number(0x0600, 0xFFFF))

    def _to_many(self) -> Node:
        if self._words.word() == "broadcast":
            return EtherHost(_ALL_ONES, end="dst")
        return EtherHost(b"\1" + bytes(5), b"\1" + bytes(5), "dst")

    def _vlan(self) -> Node:
        word = self._words.peek()
        if word is not None and word[0].isdigit():
            return Vlan(self._words.number(0, 4095))
        return Vlan()

    def _protocol(self, family: int) -> Node:
        # tcpdump wants names escaped, as in "proto \\udp"
        known = PROTOCOLS.get((self._words.peek() or "").lstrip("\\"))
        if known is not None:
            self._words.skip()
            return Protocol(known.value, family)
        return Protocol(self._words.number(0, 255), family)

    # -- src, dst and what they stand before --------------------------------------------------------------------

    def _directed(self, family: int = 0, protocol: Node | None = None) -> Node:
        is_said = self._words.peek() in ("src", "dst")
        end = self._end()
        word = self._words.peek()
        if word in ("port", "portrange") and not family:
            self._words.skip()
            node = self._repeated(lambda: self._ports(end, protocol, is_range=word == "portrange"))
        elif word == "net" and protocol is None:
            self._words.skip()
            node = self._repeated(lambda: self._net(end, family))
        elif protocol is None and (self._words.take("host") or (is_said and self._words.is_value())):
            node = self._repeated(lambda: self._host(end, family))
        else:
            wanted = ("port", "portrange") if protocol is not None else ("host", "net") if family else VALUES
            raise self._words.error(", ".join(repr(name) for name in wanted))
        return node

    def _end(self) -> End:
        first = self._words.peek()
        if first not in ("src", "dst"):
            return "either"
        self._words.skip()
        joint = self._words.peek()
        if joint in ("and", "or") and self._words.peek(1) == ("dst" if first == "src" else "src"):
            # "src and dst port 53" is one primitive, "src 10.0.0.1 and dst 10.0.0.2" are two
            self._words.skip(2)
            return "both" if joint == "and" else "either"
        return "src" if first == "src" else "dst"

    def _repeated(self, primitive: Callable[[], Node]) -> Node:
        self._again = primitive
        return primitive()

    # -- values -------------------------------------------------------------------------------------------------

    def _ports(self, end: End, protocol: Node | None, *, is_range: bool) -> Node:
        if is_range:
            word = self._words.peek() or ""
            low, dash, high = word.partition("-")
            if not (dash and low.isdecimal() and high.isdecimal() and int(low) <= int(high) <= 0xFFFF):
                raise self._words.error("a range of ports such as 1-1024")
            self._words.skip()
            node: Node = Port(int(low), int(high), end)
        else:
            value = self._words.number(0, 0xFFFF)
            node = Port(value, value, end)
        return node if protocol is None else AllOf((protocol, node))

    def _host(self, end: End, family: int) -> Node:
        try:
            host = ipaddress.ip_address(self._words.peek() or "")
        except ValueError:
            wanted = "a host's number such as 10.0.0.1 or 2001:db8::1 (names are not looked up)"
            raise self._words.error(wanted) from None
        self._must_fit(host.version, family)
        self._words.skip()
        return Net(host.packed, b"\xff" * len(host.packed), end, family)

    def _net(self, end: End, family: int) -> Node:
        word = self._words.peek() or ""
        nr_words = 1
        if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,3}", word):  # tcpdump's short form: as many bytes as are written
            shown = word.split(".")
            mask: str | int = 8 * len(shown)
            word = ".".join(shown + ["0"] * (4 - len(shown)))
            said = self._words.peek(2) if self._words.peek(1) == "mask" else None
            if said is not None:
                mask, nr_words = said, 3
            word = f"{word}/{mask}"
        elif "/" not in word:
            word = f"{word}/128"
        try:
            net = ipaddress.ip_network(word)
        except ValueError as error:
            reason = " (bits outside the mask are set)" if "host bits" in str(error) else ""
            raise self._words.error(f"a network such as 10.0.0.0/8 or 2001:db8::/32{reason}") from None
        self._must_fit(net.version, family)
        self._words.skip(nr_words)
        return Net(net.network_address.packed, net.netmask.packed, end, family)

    def _must_fit(self, version: int, family: int) -> None:
        if family and (version == 6) != (family == IP6):
            name = next(name for name, value in FAMILIES.items() if value == family)
            raise self._words.error(f"an IPv{4 if version == 6 else 6} number after {name!r}")


def _joined(kind: type[AllOf] | type[AnyOf], left: Node, right: Node) -> Node:
    """Join two parts, flat where the left one is such a chain already: depth is what parentheses make."""
    parts = left.parts if isinstance(left, kind) else (left,)
    return kind((*parts, right))


def _with_depths(node: Node, depth: int) -> tuple[Node, int]:
    """Give each ``vlan`` its tag: behind those that the parts before it in an ``and`` ask for."""
    match node:
        case Vlan(vid):
            if depth >= MAX_TAGS:
                raise FilterError(f"vlan: expected at most {MAX_TAGS} tags behind each other, found one more")
            return Vlan(vid, depth), depth + 1
        case Not(inner):
            return Not(_with_depths(inner, depth)[0]), depth
        case AllOf(parts):
            placed = []
            for part in parts:
                part, depth = _with_depths(part, depth)
                placed.append(part)
            return AllOf(tuple(placed)), depth
        case AnyOf(parts):
            found = [_with_depths(part, depth) for part in parts]
            return AnyOf(tuple(part for part, _ in found)), max(after for _, after in found)
        case _:
            return node, depth

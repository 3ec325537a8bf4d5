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

import difflib
import ipaddress
import re
from collections.abc import Callable
from typing import Final

from pagepool.drivers.af_xdp.filter.tree import (
    ARP,
    IP,
    IP6,
    MAX_TAGS,
    RARP,
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

__all__ = ["MAX_NESTING", "MAX_PRIMITIVES", "parse_filter"]

MAX_PRIMITIVES: Final = 256
MAX_NESTING: Final = 32

_FAMILIES: Final = {"ip": IP, "ip6": IP6, "arp": ARP, "rarp": RARP}
_PROTOCOLS: Final = {
    "icmp": Protocol(1, IP),
    "igmp": Protocol(2, IP),
    "tcp": Protocol(6),
    "udp": Protocol(17),
    "esp": Protocol(50),
    "ah": Protocol(51),
    "icmp6": Protocol(58, IP6),
    "pim": Protocol(103),
    "vrrp": Protocol(112, IP),
    "sctp": Protocol(132),
}
_WITH_PORTS: Final = ("tcp", "udp", "sctp")
_VALUES: Final = ("host", "net", "port", "portrange")
_DIRECTED: Final = ("src", "dst", *_VALUES)
_FIRST: Final = (
    *("all", "not", "ether", "vlan", "less", "greater", "proto", "broadcast", "multicast"),
    *_FAMILIES,
    *_PROTOCOLS,
    *_DIRECTED,
)
_NOT_HERE: Final = (
    "gateway",
    "protochain",
    "mpls",
    "pppoed",
    "pppoes",
    "geneve",
    "inbound",
    "outbound",
    "ifname",
    "llc",
)
_TOKEN: Final = re.compile(r"[()!]|&&|\|\||[^\s()!&|]+|[&|]")
_SPELLING: Final = {"&&": "and", "||": "or", "!": "not"}
_MAC: Final = re.compile(r"[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}|[0-9a-f]{1,2}(?:-[0-9a-f]{1,2}){5}")
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
        self._text = text
        self._found = list(_TOKEN.finditer(text))
        self._tokens = [_SPELLING.get(found[0], found[0].lower()) for found in self._found]
        self._next = 0
        self._primitives = 0
        self._again: Callable[[], Node] = lambda: self._host("either", 0)  # what a value alone means

    # -- and, or, not -------------------------------------------------------------------------------------------

    def whole(self) -> Node:
        """Parse all of it."""
        if not self._tokens:
            return Everything()
        node = self._expression(0)
        if self._peek() is not None:
            raise self._error("'and', 'or' or the end")
        return node

    def _expression(self, depth: int) -> Node:
        node = self._term(depth)
        while True:
            if self._take("or"):
                node = _joined(AnyOf, node, self._term(depth))
            elif self._take("and"):
                node = _joined(AllOf, node, self._term(depth))
            else:
                return node

    def _term(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise self._error(f"at most {MAX_NESTING} parentheses and negations inside each other")
        if self._take("not"):
            return Not(self._term(depth + 1))
        if self._take("("):
            node = self._expression(depth + 1)
            if not self._take(")"):
                raise self._error("')'")
            return node
        self._primitives += 1
        if self._primitives > MAX_PRIMITIVES:
            raise self._error(f"at most {MAX_PRIMITIVES} primitives")
        return self._primitive()

    # -- primitives ---------------------------------------------------------------------------------------------

    def _primitive(self) -> Node:
        word = self._peek()
        if word in _DIRECTED:
            return self._directed()
        if word in _FAMILIES:
            return self._of_family(self._word())
        if word in _PROTOCOLS:
            return self._of_protocol(self._word())
        if self._take("all"):
            return Everything()
        if self._take("ether"):
            return self._ether()
        if self._take("proto"):
            return self._repeated(lambda: self._protocol(0))
        if self._take("vlan"):
            return self._vlan()
        if self._take("less"):
            return Length(0, self._number(0, _FAR - 1))
        if self._take("greater"):
            return Length(self._number(0, _FAR - 1), _FAR)
        if word in ("broadcast", "multicast"):
            return self._to_many()
        if self._is_value():
            return self._again()
        raise self._error("a primitive such as 'udp', 'port', 'net', 'vlan', 'ether'")

    def _of_family(self, name: str) -> Node:
        family = _FAMILIES[name]
        word = self._peek()
        if word in ("src", "dst", "host", "net"):
            return self._directed(family=family)
        if family in (IP, IP6):
            if self._take("proto"):
                return self._repeated(lambda: self._protocol(family))
            if self._take("multicast"):
                if family == IP:  # from 224.0.0.0 to the end, as libpcap has it
                    return Net(bytes([224, 0, 0, 0]), bytes([224, 0, 0, 0]), "dst", IP)
                return Net(b"\xff" + bytes(15), b"\xff" + bytes(15), "dst", IP6)
        return EtherType(family)

    def _of_protocol(self, name: str) -> Node:
        node = _PROTOCOLS[name]
        if name in _WITH_PORTS and self._peek() in ("src", "dst", "port", "portrange"):
            return self._directed(protocol=node)
        return node

    def _ether(self) -> Node:
        if self._take("proto"):
            return self._repeated(self._ether_type)
        if self._peek() in ("broadcast", "multicast"):
            return self._to_many()
        is_said = self._peek() in ("src", "dst")
        end = self._end()
        if not self._take("host") and not is_said:
            raise self._error("'proto', 'host', 'src', 'dst', 'broadcast', 'multicast'")
        return self._repeated(lambda: EtherHost(self._mac(), end=end))

    def _ether_type(self) -> Node:
        known = _FAMILIES.get((self._peek() or "").lstrip("\\"))
        if known is not None:
            self._next += 1
            return EtherType(known)
        return EtherType(self._number(0x0600, 0xFFFF))

    def _to_many(self) -> Node:
        if self._word() == "broadcast":
            return EtherHost(_ALL_ONES, end="dst")
        return EtherHost(b"\1" + bytes(5), b"\1" + bytes(5), "dst")

    def _vlan(self) -> Node:
        word = self._peek()
        if word is not None and word[0].isdigit():
            return Vlan(self._number(0, 4095))
        return Vlan()

    def _protocol(self, family: int) -> Node:
        known = _PROTOCOLS.get((self._peek() or "").lstrip("\\"))  # tcpdump wants names escaped, as in "proto \\udp"
        if known is not None:
            self._next += 1
            return Protocol(known.value, family)
        return Protocol(self._number(0, 255), family)

    # -- src, dst and what they stand before --------------------------------------------------------------------

    def _directed(self, family: int = 0, protocol: Node | None = None) -> Node:
        is_said = self._peek() in ("src", "dst")
        end = self._end()
        word = self._peek()
        if word in ("port", "portrange") and not family:
            self._next += 1
            node = self._repeated(lambda: self._ports(end, protocol, is_range=word == "portrange"))
        elif word == "net" and protocol is None:
            self._next += 1
            node = self._repeated(lambda: self._net(end, family))
        elif protocol is None and (self._take("host") or (is_said and self._is_value())):
            node = self._repeated(lambda: self._host(end, family))
        else:
            wanted = ("port", "portrange") if protocol is not None else ("host", "net") if family else _VALUES
            raise self._error(", ".join(repr(name) for name in wanted))
        return node

    def _end(self) -> End:
        first = self._peek()
        if first not in ("src", "dst"):
            return "either"
        self._next += 1
        other = "dst" if first == "src" else "src"
        if self._tokens[self._next : self._next + 2] in (["or", other], ["and", other]):
            both = self._tokens[self._next] == "and"
            # "src and dst port 53" is one primitive, "src 10.0.0.1 and dst 10.0.0.2" are two
            self._next += 2
            return "both" if both else "either"
        return "src" if first == "src" else "dst"

    def _repeated(self, primitive: Callable[[], Node]) -> Node:
        self._again = primitive
        return primitive()

    # -- values -------------------------------------------------------------------------------------------------

    def _ports(self, end: End, protocol: Node | None, *, is_range: bool) -> Node:
        if is_range:
            word = self._peek() or ""
            low, dash, high = word.partition("-")
            if not (dash and low.isdecimal() and high.isdecimal() and int(low) <= int(high) <= 0xFFFF):
                raise self._error("a range of ports such as 1-1024")
            self._next += 1
            node: Node = Port(int(low), int(high), end)
        else:
            value = self._number(0, 0xFFFF)
            node = Port(value, value, end)
        return node if protocol is None else AllOf((protocol, node))

    def _host(self, end: End, family: int) -> Node:
        try:
            host = ipaddress.ip_address(self._peek() or "")
        except ValueError:
            raise self._error("a host's number such as 10.0.0.1 or 2001:db8::1 (names are not looked up)") from None
        self._must_fit(host.version, family)
        self._next += 1
        return Net(host.packed, b"\xff" * len(host.packed), end, family)

    def _net(self, end: End, family: int) -> Node:
        word = self._peek() or ""
        at = self._next
        if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,3}", word):  # tcpdump's short form: as many bytes as are written
            shown = word.split(".")
            mask: str | int = 8 * len(shown)
            word = ".".join(shown + ["0"] * (4 - len(shown)))
            if self._tokens[at + 1 : at + 2] == ["mask"] and at + 2 < len(self._tokens):
                self._next += 2
                mask = self._tokens[at + 2]
            word = f"{word}/{mask}"
        elif "/" not in word:
            word = f"{word}/128"
        try:
            net = ipaddress.ip_network(word)
        except ValueError as error:
            self._next = at
            reason = " (bits outside the mask are set)" if "host bits" in str(error) else ""
            raise self._error(f"a network such as 10.0.0.0/8 or 2001:db8::/32{reason}") from None
        self._must_fit(net.version, family)
        self._next += 1
        return Net(net.network_address.packed, net.netmask.packed, end, family)

    def _must_fit(self, version: int, family: int) -> None:
        if family and (version == 6) != (family == IP6):
            name = next(name for name, value in _FAMILIES.items() if value == family)
            raise self._error(f"an IPv{4 if version == 6 else 6} number after {name!r}")

    def _mac(self) -> bytes:
        word = self._peek() or ""
        if not _MAC.fullmatch(word):
            raise self._error("a MAC number such as 02:00:00:00:00:01")
        self._next += 1
        return bytes(int(part, 16) for part in re.split("[:-]", word))

    def _number(self, low: int, high: int) -> int:
        try:
            value = int(self._peek() or "", 0)
        except ValueError:
            value = -1
        if not low <= value <= high:
            raise self._error(f"a number from {low} to {high}")
        self._next += 1
        return value

    # -- words --------------------------------------------------------------------------------------------------

    def _is_value(self) -> bool:
        word = self._peek()
        return word is not None and (word[0] in "0123456789:" or _MAC.fullmatch(word) is not None or "::" in word)

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _word(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]

    def _take(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self._next += 1
        return True

    def _error(self, wanted: str) -> FilterError:
        """Return what to say about the next word, which is pointed at."""
        if self._next >= len(self._found):
            return FilterError(f"filter {_short(self._text)!r} ends too early: expected {wanted}")
        found = self._found[self._next]
        word = found[0]
        before, after = self._text[: found.start()], self._text[found.end() :]
        place = f"{'...' if len(before) > 40 else ''}{before[-40:]}>>{word}<<{_short(after, 40)}"
        advice = ""
        if word.lower() in _NOT_HERE or "[" in word:
            advice = "; tcpdump has it, this filter has not: see `pagepool.drivers.af_xdp.filter.grammar`"
        elif near := difflib.get_close_matches(word.lower(), [*_FIRST, "and", "or"], 1, 0.7):
            advice = f"; did you mean {near[0]!r}?" if near[0] != word.lower() else ""
        return FilterError(f"filter {place!r}: expected {wanted}, found {word!r}{advice}")


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."


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

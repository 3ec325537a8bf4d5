# SPDX-License-Identifier: MIT
"""The filter language: which frames go to the AF_XDP socket, as a small expression.

A filter is parsed into a tree of :class:`Node`; :mod:`.xdp_program` turns the tree into instructions. It is a
small part of pcap-filter(7) on purpose: what one needs to take some traffic and leave the rest to the
kernel's stack.

=============================  ===========================================================================
``all``                        every frame (also the empty filter)
``arp``, ``ip``, ``ip6``       by EtherType, behind one VLAN tag too
``ether proto 0x88b5``         any EtherType
``udp``, ``tcp``               over IPv4 or IPv6 (IPv6 without extension headers)
``icmp``, ``icmp6``            over IPv4 / over IPv6
``port 53``                    UDP or TCP, either end; not in later fragments. Also ``src port``, ``dst port``
``udp port 53``                the same as ``udp and port 53``
``host 10.0.0.1``              IPv4 source or destination. Also ``src host``, ``dst host``
``not a``, ``a and b``         with ``or`` and parentheses; ``not`` binds tightest, then ``and``, then ``or``
=============================  ===========================================================================
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "And",
    "EtherType",
    "Everything",
    "FilterError",
    "Host",
    "Node",
    "Not",
    "Or",
    "Port",
    "Protocol",
    "parse_filter",
]

End = Literal["src", "dst", "either"]


class FilterError(ValueError):
    """The filter expression does not parse; the text says where."""


@dataclass(frozen=True)
class Everything:
    """Every frame."""


@dataclass(frozen=True)
class EtherType:
    """Frames whose EtherType (of the payload, behind a VLAN tag) is ``value``."""

    value: int


@dataclass(frozen=True)
class Protocol:
    """IPv4 or IPv6 packets with protocol number ``value``; ``family`` 0 means both, else the EtherType of
    one.
    """

    value: int
    family: int = 0


@dataclass(frozen=True)
class Port:
    """UDP or TCP packets with this port, 1 to 65535."""

    value: int
    end: End = "either"


@dataclass(frozen=True)
class Host:
    """IPv4 packets from or to the host, whose IPv4 number is in host byte order."""

    value: int
    end: End = "either"


@dataclass(frozen=True)
class Not:
    """What ``inner`` does not match."""

    inner: Node


@dataclass(frozen=True)
class And:
    """What both match."""

    left: Node
    right: Node


@dataclass(frozen=True)
class Or:
    """What one of them matches."""

    left: Node
    right: Node


Node = Everything | EtherType | Protocol | Port | Host | Not | And | Or

_IP, _IP6, _ARP = 0x0800, 0x86DD, 0x0806
_WORDS: dict[str, Node] = {
    "all": Everything(),
    "ip": EtherType(_IP),
    "ip6": EtherType(_IP6),
    "arp": EtherType(_ARP),
    "icmp": Protocol(1, _IP),
    "icmp6": Protocol(58, _IP6),
    "tcp": Protocol(6),
    "udp": Protocol(17),
}
_TOKEN = re.compile(r"[()!]|&&|\|\||[^\s()!&|]+")
_SPELLING = {"&&": "and", "||": "or", "!": "not"}


def parse_filter(text: str) -> Node:
    """Parse a filter expression.

    Raises
    ------
    FilterError
        With the word at which the expression stops to make sense.
    """
    tokens = [_SPELLING.get(word, word) for word in _TOKEN.findall(text.lower())]
    if not tokens:
        return Everything()
    parser = _Parser(tokens, text)
    node = parser.disjunction()
    parser.expect_end()
    return node


class _Parser:
    """Recursive descent over the words of one expression."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._next = 0

    def disjunction(self) -> Node:
        node = self._conjunction()
        while self._take("or"):
            node = Or(node, self._conjunction())
        return node

    def expect_end(self) -> None:
        if self._peek() is not None:
            raise self._error("end of filter, 'and' or 'or'")

    def _conjunction(self) -> Node:
        node = self._term()
        while self._take("and"):
            node = And(node, self._term())
        return node

    def _term(self) -> Node:
        if self._take("not"):
            return Not(self._term())
        if self._take("("):
            node = self.disjunction()
            if not self._take(")"):
                raise self._error("')'")
            return node
        return self._primitive()

    def _primitive(self) -> Node:
        word = self._peek()
        if word in ("src", "dst", "port", "host"):
            return self._ended()
        if self._take("ether"):
            if not self._take("proto"):
                raise self._error("'proto'")
            return EtherType(self._number(0x0001, 0xFFFF))
        node = _WORDS.get(word or "")
        if node is None:
            raise self._error("a protocol, 'port', 'host', 'ether proto', 'all'")
        self._next += 1
        if word in ("udp", "tcp") and self._peek() in ("src", "dst", "port"):
            return And(node, self._ended())
        return node

    def _ended(self) -> Node:
        end: End = "src" if self._take("src") else "dst" if self._take("dst") else "either"
        if self._take("port"):
            return Port(self._number(1, 0xFFFF), end)
        if self._take("host"):
            word = self._peek() or ""
            try:
                host = int(ipaddress.IPv4Address(word))
            except ValueError:
                raise self._error("an IPv4 number such as 10.0.0.1") from None
            self._next += 1
            return Host(host, end)
        raise self._error("'port' or 'host'")

    def _number(self, low: int, high: int) -> int:
        try:
            value = int(self._peek() or "", 0)
        except ValueError:
            value = -1
        if not low <= value <= high:
            raise self._error(f"a number from {low} to {high}")
        self._next += 1
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self._next += 1
        return True

    def _error(self, wanted: str) -> FilterError:
        found = self._peek()
        return FilterError(
            f"filter {self._text!r}: expected {wanted}, found {'its end' if found is None else repr(found)}"
        )

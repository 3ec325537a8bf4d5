# SPDX-License-Identifier: MIT
"""The words of a filter's text, one after the other, and what is said about one that does not fit.

Knows which words there are, for the sake of a spelling mistake, but not in which order they make sense: that is
`pagepool.drivers.af_xdp.filter.grammar`.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

from pagepool.drivers.af_xdp.filter.tree import ARP, IP, IP6, RARP, FilterError, Protocol

__all__ = ["DIRECTED", "FAMILIES", "PROTOCOLS", "VALUES", "WITH_PORTS", "Words"]

FAMILIES: Final = {"ip": IP, "ip6": IP6, "arp": ARP, "rarp": RARP}
PROTOCOLS: Final = {
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
WITH_PORTS: Final = ("tcp", "udp", "sctp")
VALUES: Final = ("host", "net", "port", "portrange")
DIRECTED: Final = ("src", "dst", *VALUES)
_FIRST: Final = (
    *("all", "not", "ether", "vlan", "less", "greater", "proto", "broadcast", "multicast"),
    *FAMILIES,
    *PROTOCOLS,
    *DIRECTED,
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


class Words:
    """The words of one expression, in lower case and one spelling, and how far they have been taken."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found = list(_TOKEN.finditer(text))
        self._tokens = [_SPELLING.get(found[0], found[0].lower()) for found in self._found]
        self._next = 0

    def is_value(self) -> bool:
        """Return whether the next word can only be a number of some sort."""
        word = self.peek()
        return word is not None and (word[0] in "0123456789:" or _MAC.fullmatch(word) is not None or "::" in word)

    def peek(self, ahead: int = 0) -> str | None:
        """Return the next word, or one behind it; None after the end."""
        at = self._next + ahead
        return self._tokens[at] if at < len(self._tokens) else None

    def skip(self, nr_words: int = 1) -> None:
        """Take words that were looked at."""
        self._next += nr_words

    def word(self) -> str:
        """Take the next word, which there is."""
        self._next += 1
        return self._tokens[self._next - 1]

    def take(self, word: str) -> bool:
        """Take the next word if it is this one; return whether it was."""
        if self.peek() != word:
            return False
        self.skip()
        return True

    def error(self, wanted: str) -> FilterError:
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

    def number(self, low: int, high: int) -> int:
        """Take a number, decimal or ``0x...``."""
        try:
            value = int(self.peek() or "", 0)
        except ValueError:
            value = -1
        if not low <= value <= high:
            raise self.error(f"a number from {low} to {high}")
        self.skip()
        return value

    def mac(self) -> bytes:
        """Take a MAC number, as 6 bytes."""
        word = self.peek() or ""
        if not _MAC.fullmatch(word):
            raise self.error("a MAC number such as 02:00:00:00:00:01")
        self.skip()
        return bytes(int(part, 16) for part in re.split("[:-]", word))


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."

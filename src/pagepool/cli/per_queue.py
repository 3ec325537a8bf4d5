# SPDX-License-Identifier: MIT
"""A filter for one queue or for all: ``2:udp port 53``, ``udp port 53``.

Only the command line's notation; what an expression means is said elsewhere. Invariant: what begins like a queue and is
an IPv6 number (``2:1::5``) is an expression.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pagepool.cli.failure import UsageError

__all__ = ["Filters", "parse_filters", "parse_rules"]

_WITH_QUEUE = re.compile(r"\s*(\d+)\s*:\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which frames to take of which queue.

    Attributes
    ----------
    others : str
        For the queues that have none of their own.
    own : tuple of (int, str)
        Queues, each once, and theirs.
    """

    others: str = "all"
    own: tuple[tuple[int, str], ...] = ()

    def of(self, queue: int) -> str:
        """Return the filter of a queue."""
        return dict(self.own).get(queue, self.others)

    def __bool__(self) -> bool:
        return self.others != "all" or bool(self.own)


def parse_filters(texts: Sequence[str]) -> Filters:
    """Return what several ``--filter`` say together.

    Raises
    ------
    UsageError
        Two are for the same queues.
    """
    others: str | None = None
    own: dict[int, str] = {}
    for text in texts:
        queue, expression = _split(text)
        if queue is None:
            if others is not None:
                raise UsageError("--filter twice for all queues: join the two with 'or', or say QUEUE:EXPRESSION")
            others = expression
        elif queue in own:
            raise UsageError(f"--filter twice for queue {queue}: join the two with 'or'")
        else:
            own[queue] = expression
    return Filters("all" if others is None else others, tuple(own.items()))


def parse_rules(texts: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Return queue and expression of each ``--steer``.

    Raises
    ------
    UsageError
        One has no queue, or nothing else.
    """
    found = []
    for text in texts:
        queue, expression = _split(text)
        if queue is None or not expression:
            raise UsageError(f"--steer {text!r}: it is QUEUE:EXPRESSION, such as '2:udp dst port 53'")
        found.append((queue, expression))
    return tuple(found)


def _split(text: str) -> tuple[int | None, str]:
    """Return the queue, None where there is none, and the expression."""
    found = _WITH_QUEUE.fullmatch(text)
    if found is None or _is_ipv6(text.split()[0]):
        return None, text
    return int(found[1]), found[2].strip()


def _is_ipv6(word: str) -> bool:
    try:
        ipaddress.IPv6Interface(word)
    except ValueError:
        return False
    return True

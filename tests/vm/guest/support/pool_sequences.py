# SPDX-License-Identifier: MIT
"""Random calls on a driven pool: seeded, so that a sequence that shows a difference can be had again.

A sequence has moods (fill, empty, churn, fragments, bulk), so that it comes to the ends of cache and ring and stays
there for a while. It makes only calls that a correct driver may make, and that both pools have: bulk puts are of whole
pages that have no more references than one, since ours are by id.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from .pool_driver import BULK_QUEUE, DrivenPool

Item = TypeVar("Item")
FRAGMENT_ALIGN = 64
MOODS = {
    "fill": {"take": 8, "give": 1, "get": 0.2},
    "empty": {"take": 1, "give": 8, "bulk": 1, "drop": 1},
    "churn": {"take": 4, "give": 4, "get": 0.3, "drop": 0.3, "ref": 0.3, "unref": 0.4, "nid": 0.1},
    "fragments": {"carve": 6, "give_fragment": 4, "give": 1, "take": 1, "get_fragment": 0.2, "drop": 0.3},
    "bulk": {"take": 12, "bulk": 1.5, "give": 1},
}


class RandomCalls:
    """Makes random calls on one pool.

    Parameters
    ----------
    pool : DrivenPool
    seed : int
    nodes : bool
        Whether to move the pool between the two nodes.
    most : int
        Pages out at most.
    """

    def __init__(self, pool: DrivenPool, seed: int, *, nodes: bool = False, most: int = 400) -> None:
        self.pool, self.random, self.most = pool, random.Random(seed), most
        self.whole: list[int] = []
        self.fragments: list[tuple[int, int]] = []
        self.split: dict[int, int] = {}  # page -> references, of whole pages that have more than one
        self.holders: list[int] = []
        self.nodes = nodes
        self.object_bytes = 4096 << pool.params["order"]

    def run(self, calls: int) -> None:
        """Make so many calls, give everything back, and destroy the pool."""
        while len(self.pool.calls) < calls:
            mood = MOODS[self.random.choice(list(MOODS))]
            steps = [getattr(self, f"_{name}") for name in mood]
            for _ in range(self.random.choice((20, 60, 200))):
                self.random.choices(steps, list(mood.values()))[0]()
        self._give_all()
        self.pool.destroy()

    # -- steps; one that cannot be made now makes nothing ----------------------------------------------------------

    def _take(self) -> None:
        if len(self.whole) + len(self.split) < self.most:
            page, _, _ = self.pool.take()
            self.whole.append(page)

    def _carve(self) -> None:
        if len(self.fragments) >= self.most:
            return
        most = self.random.choice((2, 8, 16)) if self.random.random() < 0.9 else 1
        size = self.random.randint(1, self.object_bytes // most // FRAGMENT_ALIGN) * FRAGMENT_ALIGN
        rest = self.random.random() < 0.5
        page, offset, length = self.pool.take(size, rest=rest, va=rest and self.random.random() < 0.5)
        if rest and length == self.object_bytes:
            self.whole.append(page)
        else:
            self.fragments.append((page, offset))

    def _give(self) -> None:
        if self.whole:
            self._put(self._any(self.whole), 0)

    def _give_fragment(self) -> None:
        if self.fragments:
            self._put(*self._any(self.fragments))

    def _put(self, page: int, offset: int) -> None:
        way = self.random.random()
        sync_bytes = self.random.choice((-1, -1, 64, 1500, self.object_bytes))
        if way < 0.35:
            self.pool.give(page, offset, sync_bytes=sync_bytes)
        elif way < 0.45:
            self.pool.recycle_direct(page, offset)
        elif way < 0.6:
            self.pool.give(page, offset, direct=True, sync_bytes=sync_bytes)
        elif way < 0.65:
            self.pool.give(page, offset, what=self.random.choice(("PUT_FULL_PAGE", "FREE_VA")))
        else:
            softirq, cpu = self.random.random() < 0.5, self.random.randint(0, 1)
            self.pool.give(page, offset, consumer=False, softirq=softirq, cpu=cpu, sync_bytes=sync_bytes)

    def _bulk(self) -> None:
        count = self.random.randint(1, BULK_QUEUE)
        pages = [self._any(self.whole) for _ in range(min(count, len(self.whole)))]
        if pages:
            self.pool.bulk(pages, consumer=self.random.random() < 0.4, cpu=self.random.randint(0, 1))

    def _get(self) -> None:
        if self.whole:
            self._hold(self.random.choice(self.whole))

    def _get_fragment(self) -> None:
        if self.fragments:
            self._hold(self.random.choice(self.fragments)[0])

    def _hold(self, page: int) -> None:
        self.pool.get(page)
        self.holders.append(page)

    def _drop(self) -> None:
        if self.holders:
            self.pool.drop(self._any(self.holders))

    def _ref(self) -> None:
        if self.whole:
            page, count = self._any(self.whole), self.random.randint(1, 6)
            self.pool.ref(page, count, fragment=self.random.random() < 0.5)
            self.split[page] = count + 1

    def _unref(self) -> None:
        if not self.split:
            return
        page = self.random.choice(list(self.split))
        count = self.random.randint(1, self.split[page])
        self.split[page] -= count
        if not self.split[page]:
            del self.split[page]
        consumer = self.random.random() < 0.5
        if count == 1 and self.random.random() < 0.5:
            self.pool.give(page, consumer=consumer)
        else:
            self.pool.unref(page, count, consumer=consumer, cpu=self.random.randint(0, 1))

    def _nid(self) -> None:
        if self.nodes:
            self.pool.update_nid(self.random.randint(0, 1), if_changed=self.random.random() < 0.5)

    def _any(self, items: list[Item]) -> Item:
        at = self.random.randrange(len(items))
        items[at], items[-1] = items[-1], items[at]
        return items.pop()

    def _give_all(self) -> None:
        steps: list[tuple[list[int] | list[tuple[int, int]] | dict[int, int], Callable[[], None]]] = [
            (self.whole, self._give),
            (self.fragments, self._give_fragment),
            (self.split, self._unref),
            (self.holders, self._drop),
        ]
        for left, step in steps:
            while left:
                step()

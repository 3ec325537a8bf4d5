# SPDX-License-Identifier: MIT
"""Any order of exports, puts, drops and closes: a page is lent exactly as long as somebody holds it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from core_doubles import memory
from dlpack_consumer import Taken
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagepool import Page, PagePool
from pagepool.errors import DeadPageError

V1 = (1, 0)

EXPORTS: dict[str, Callable[[Page], Any]] = {
    "buffer": memoryview,
    "numpy": np.from_dlpack,
    "capsule": lambda page: page.__dlpack__(max_version=V1),
    "taken": lambda page: Taken(page.__dlpack__(max_version=V1)),
    "interface": lambda page: page.__array_interface__,
    "reader": lambda page: page.toreadonly(),
}


class Exports(RuleBasedStateMachine):
    """Pages in hands, and what was made of them; the model counts who holds which page."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(memory=memory(), pool_size=4, limit=64)
        self.handles: list[Page] = []
        self.made: list[tuple[int, Any]] = []

    @precondition(lambda self: not self.pool.closed)
    @rule()
    def alloc(self) -> None:
        page = self.pool.dev_alloc_pages()
        if page is None:
            assert self.pool.inflight >= 64
            return
        assert page.id not in {page_id for page_id, _ in self.made} | {other.id for other in self.handles}
        page[0] = page.id & 255
        self.handles.append(page)

    @precondition(lambda self: self.handles)
    @rule(at=st.integers(0, 99), kind=st.sampled_from(sorted(EXPORTS)))
    def export(self, at: int, kind: str) -> None:
        page = self.handles[at % len(self.handles)]  # drawn as a number: what hypothesis draws, it keeps
        self.made.append((page.id, EXPORTS[kind](page)))

    @precondition(lambda self: self.handles)
    @rule(at=st.integers(0, 99))
    def copy(self, at: int) -> None:
        page = self.handles[at % len(self.handles)]
        taken = Taken(page.__dlpack__(max_version=V1, copy=True))
        assert taken.read(1)[0] == page.id & 255
        taken.delete()

    @precondition(lambda self: self.handles)
    @rule(at=st.integers(0, 99), drop=st.booleans())
    def put(self, at: int, drop: bool) -> None:
        page = self.handles.pop(at % len(self.handles))
        if drop:
            del page
            return
        page.put()
        try:
            page.__dlpack__()
        except DeadPageError:
            return
        raise AssertionError("a dead handle made a capsule")

    @precondition(lambda self: self.made)
    @rule(at=st.integers(0, 99), elsewhere=st.booleans())
    def drop(self, at: int, elsewhere: bool) -> None:
        held = [self.made.pop(at % len(self.made))[1]]
        if elsewhere:
            thread = threading.Thread(target=_let_go, args=(held,))
            thread.start()
            thread.join()
        else:
            _let_go(held)

    @rule()
    def close(self) -> None:
        self.pool.close()

    @invariant()
    def lent_is_held(self) -> None:
        held = {page_id for page_id, _ in self.made} | {page.id for page in self.handles}
        assert self.pool.lent == len(held)
        self.pool.check()
        for page_id, made in self.made:
            if isinstance(made, (memoryview, np.ndarray, Page)):
                assert made[0] == page_id & 255

    def teardown(self) -> None:
        while self.made:
            _let_go([self.made.pop()[1]])
        self.handles.clear()
        assert self.pool.lent == 0
        self.pool.close()
        self.pool.check()


def _let_go(held: list[Any]) -> None:
    thing = held.pop()
    if isinstance(thing, Taken):
        thing.delete()


TestExports = Exports.TestCase
TestExports.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_exports_dropped_from_many_threads() -> None:
    pool = PagePool(memory=memory(), pool_size=256)
    rounds, workers = 40, 4
    for _ in range(rounds):
        shares: list[list[Any]] = [[] for _ in range(workers)]
        for number in range(32):
            page = pool.alloc_pages()
            kinds = sorted(EXPORTS)
            for k, share in enumerate(shares):
                share.append(EXPORTS[kinds[(number + k) % len(kinds)]](page))
            page.put()
        start = threading.Barrier(workers)

        def work(share: list[Any], start: threading.Barrier = start) -> None:
            start.wait()
            while share:
                _let_go([share.pop()])

        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.lent == 0
        pool.check()


def test_exports_race_with_the_put() -> None:
    """Threads export while the owner puts: each gets the page, or is told that the handle is dead."""
    pool = PagePool(memory=memory(), pool_size=256)
    for _ in range(300):
        page = pool.alloc_pages()
        page[0] = 1
        start = threading.Barrier(3)
        problems: list[BaseException] = []

        def export(page: Page = page, start: threading.Barrier = start, problems: Any = problems) -> None:
            start.wait()
            try:
                taken = Taken(page.__dlpack__(max_version=V1))
            except DeadPageError:
                return
            except BaseException as error:
                problems.append(error)
                return
            taken.delete()

        threads = [threading.Thread(target=export) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        page.put()
        for thread in threads:
            thread.join()
        assert not problems
        assert pool.lent == 0
        pool.check()

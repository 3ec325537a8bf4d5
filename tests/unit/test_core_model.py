# SPDX-License-Identifier: MIT
"""The whole state machine of a page against an exact model: tiers, references, fragments, counters, close."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from core_doubles import Scripted, ids_of, mapping, memory, used_pages
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagepool import Page, PagePool
from pagepool.errors import DoublePutError, ForeignPageError, PagePoolError, PoolClosedError

SLABS = 6


def elsewhere(call: Callable[[], Any]) -> Any:
    """Run on another thread, to the end."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


class Loan:
    """A lent page: who refers to it."""

    def __init__(self, page_id: int, handle: Page | None) -> None:
        self.id = page_id
        self.handle = handle
        self.holder = True  # the holder's own reference
        self.views: list[memoryview] = []
        self.foreign: list[Page] = []
        self.detached = False

    @property
    def refs(self) -> int:
        return self.holder + len(self.views)


class PoolMachine(RuleBasedStateMachine):
    """Each rule does one thing to the pool and to the model; the invariant compares everything."""

    @initialize(
        limit=st.sampled_from([0, 0, 1, 65, 200]),
        ring_size=st.sampled_from([1, 5, 70]),
        mapped=st.booleans(),
        track=st.booleans(),
    )
    def start(self, limit: int, ring_size: int, mapped: bool, track: bool) -> None:
        self.device = Scripted()
        fields = mapping(self.device) if mapped else {}
        self.mapped = mapped
        self.allocator = memory(SLABS, commit=True)
        self.pool = PagePool(memory=self.allocator, pool_size=ring_size, limit=limit, track=track, **fields)
        self.other = PagePool(memory=self.allocator)
        self.limit, self.ring_size = limit, ring_size
        self.cache: list[int | None] = []  # None: fresh, its id is not known yet
        self.ring: deque[int] = deque()
        self.hold = self.release = self.high_water = 0
        self.direct = self.open = True
        self.count: Counter[str] = Counter()
        self.loans: list[Loan] = []
        self.bulk: list[int] = []  # lent by id, without a handle
        self.dead: list[Page] = []
        self.frag_page: int | None = None
        self.frag_offset = 0
        self.fragments: dict[int, list[Page]] = {}  # page -> handles that are out

    # -- the model -----------------------------------------------------------------------------------------

    def model_take(self) -> tuple[bool, int | None]:
        if self.cache:
            self.count["fast"] += 1
            return True, self.cache.pop()
        if self.ring:
            self.cache = [self.ring.popleft() for _ in range(min(64, len(self.ring)))]
            self.count["refill"] += 1
            return True, self.cache.pop()
        self.count["empty"] += 1
        want = min(64, self.limit - (self.hold - self.release)) if self.limit else 64
        if want <= 0:
            return False, None
        self.count["slow"] += 1
        self.hold += want
        self.cache = [None] * (want - 1)
        return True, None

    def model_home(self, page_id: int, direct: bool, foreign: bool = False, full: set[str] | None = None) -> None:
        if not self.open:
            self.release += 1
        elif foreign:
            self.count["released_refcnt"] += 1
            self.release += 1
        elif direct and len(self.cache) < 128:
            self.count["cached"] += 1
            self.cache.append(page_id)
        else:
            if direct:
                self.count["cache_full"] += 1
            if len(self.ring) < self.ring_size:
                self.count["ring"] += 1
                self.ring.append(page_id)
            else:
                self.release += 1
                if full is None or not full:
                    self.count["ring_full"] += 1
                if full is not None:
                    full.add("counted")

    def note(self, expected: int | None, got: int) -> None:
        assert expected in (None, got)
        known = {page for page in (*self.cache, *self.ring) if page is not None}
        assert got not in known | set(self.bulk) | {loan.id for loan in self.loans if not loan.detached}
        assert got not in self.fragments
        self.high_water = max(self.high_water, self.hold - self.release - len(self.cache) - len(self.ring))

    def drop_holder(self, loan: Loan, direct: bool, full: set[str] | None = None) -> None:
        loan.holder = False
        if loan.refs == 0:
            self.model_home(loan.id, direct, bool(loan.foreign), full)
            self.settle(loan)

    def settle(self, loan: Loan) -> None:
        if loan.handle is not None:
            self.dead.append(loan.handle)
        if loan.foreign or (loan.detached and (loan.views or loan.holder)):
            loan.detached = True
        else:
            self.loans.remove(loan)

    def held_loans(self) -> list[Loan]:
        return [loan for loan in self.loans if loan.holder and not loan.detached]

    # -- taking ----------------------------------------------------------------------------------------------

    @rule(must=st.booleans(), n=st.sampled_from([1, 1, 1, 70]))
    def take(self, must: bool, n: int) -> None:
        for _ in range(n):
            if not self.open:
                with pytest.raises(PoolClosedError):
                    self.pool.alloc_pages()
                self.count["empty"] += 1  # it looked before it was told
                return
            there, expected = self.model_take()
            if not there and must:
                with pytest.raises(MemoryError, match="at its limit"):
                    self.pool.alloc_pages()
                return
            page = self.pool.alloc_pages() if must else self.pool.dev_alloc_pages()
            if not there:
                assert page is None
                return
            assert page is not None
            self.note(expected, page.id)
            self.loans.append(Loan(page.id, page))

    @rule(n=st.sampled_from([0, 1, 3, 64, 65, 150]))
    def take_bulk(self, n: int) -> None:
        if not self.open:
            if n:
                with pytest.raises(PoolClosedError):
                    self.pool.alloc_bulk(n)
            return
        expected = []
        for _ in range(n):
            there, page_id = self.model_take()
            if not there:
                break
            expected.append(page_id)
        got = list(self.pool.alloc_bulk(n))
        assert len(got) == len(expected)
        for want, page_id in zip(expected, got, strict=True):
            self.note(want, page_id)
            self.bulk.append(page_id)

    @precondition(lambda self: self.bulk)
    @rule(data=st.data())
    def adopt(self, data: Any) -> None:
        page_id = data.draw(st.sampled_from(self.bulk))
        self.bulk.remove(page_id)
        self.loans.append(Loan(page_id, self.pool.page(page_id)))
        with pytest.raises(PagePoolError, match="handle already"):
            self.pool.page(page_id)

    # -- giving back -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.held_loans())
    @rule(data=st.data(), how=st.sampled_from(["put", "direct", "drop", "thread", "page.put"]))
    def put(self, data: Any, how: str) -> None:
        loan = data.draw(st.sampled_from(self.held_loans()))
        handle = loan.handle
        assert handle is not None
        if how == "thread":
            elsewhere(lambda: self.pool.put_page(handle))
        elif how == "direct":
            self.pool.recycle_direct(handle)
        elif how == "put":
            self.pool.put_page(handle)
        elif how == "page.put":
            handle.put()
        elif loan.views:
            return  # views keep the handle: dropping it drops nothing
        else:
            loan.handle = None
            del handle
        self.drop_holder(loan, how == "direct" or (self.direct and how != "thread"))

    @precondition(lambda self: self.bulk or self.held_loans())
    @rule(data=st.data(), thread=st.booleans(), junk=st.lists(st.integers(0, 0xFFFFFFFF), max_size=3))
    def put_bulk(self, data: Any, thread: bool, junk: list[int]) -> None:
        by_id = {loan.id: loan for loan in self.held_loans()}
        ids = data.draw(st.lists(st.sampled_from(self.bulk + list(by_id)), unique=True, max_size=200))
        taboo = set(self.bulk) | {loan.id for loan in self.loans}
        junk = [page_id for page_id in junk if page_id not in taboo]
        array = ids_of(junk + ids + ids[:2])
        done = elsewhere(lambda: self.pool.put_bulk(array)) if thread else self.pool.put_bulk(array)
        assert done == len(ids)
        full: set[str] = set()
        for page_id in ids:
            if page_id in by_id:
                self.drop_holder(by_id[page_id], self.direct and not thread, full)
            else:
                self.bulk.remove(page_id)
                self.model_home(page_id, self.direct and not thread, full=full)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def put_the_dead(self, data: Any) -> None:
        page = data.draw(st.sampled_from(self.dead[-20:]))
        with pytest.raises(DoublePutError):
            self.pool.put_page(page)
        with pytest.raises(PagePoolError):
            page[0]

    @precondition(lambda self: self.held_loans())
    @rule(data=st.data())
    def put_elsewhere(self, data: Any) -> None:
        loan = data.draw(st.sampled_from(self.held_loans()))
        with pytest.raises(ForeignPageError):
            self.other.put_page(loan.handle)  # type: ignore[arg-type]
        assert self.other.put_bulk(ids_of([loan.id])) == 0

    # -- references ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.held_loans())
    @rule(data=st.data())
    def view(self, data: Any) -> None:
        loan = data.draw(st.sampled_from(self.held_loans()))
        loan.views.append(memoryview(loan.handle))  # type: ignore[arg-type]

    @precondition(lambda self: any(loan.views for loan in self.loans))
    @rule(data=st.data())
    def end_view(self, data: Any) -> None:
        loan = data.draw(st.sampled_from([loan for loan in self.loans if loan.views]))
        loan.views.pop().release()
        if loan.detached:
            if not (loan.views or loan.holder or loan.foreign):
                self.loans.remove(loan)
        elif loan.refs == 0:
            self.model_home(loan.id, self.direct, bool(loan.foreign))
            self.settle(loan)

    @precondition(lambda self: self.held_loans())
    @rule(data=st.data())
    def get_page(self, data: Any) -> None:
        loan = data.draw(st.sampled_from(self.held_loans()))
        loan.foreign.append(self.pool.get_page(loan.handle))  # type: ignore[arg-type]

    @precondition(lambda self: any(loan.foreign for loan in self.loans))
    @rule(data=st.data(), drop=st.booleans())
    def put_foreign(self, data: Any, drop: bool) -> None:
        loan = data.draw(st.sampled_from([loan for loan in self.loans if loan.foreign]))
        keep = loan.foreign.pop()
        if not drop:
            keep.put()
        del keep
        if loan.detached and not (loan.foreign or loan.views or loan.holder):
            self.loans.remove(loan)

    @precondition(lambda self: self.held_loans())
    @rule(data=st.data())
    def release_page(self, data: Any) -> None:
        loan = data.draw(st.sampled_from(self.held_loans()))
        self.pool.release_page(loan.handle)  # type: ignore[arg-type]
        self.release += 1
        loan.detached = True

    @precondition(lambda self: any(loan.detached and loan.holder for loan in self.loans))
    @rule(data=st.data())
    def put_released(self, data: Any) -> None:
        loan = data.draw(st.sampled_from([loan for loan in self.loans if loan.detached and loan.holder]))
        assert loan.handle is not None
        loan.handle.put()
        loan.holder = False
        if not (loan.views or loan.foreign):
            self.settle(loan)

    # -- fragments -------------------------------------------------------------------------------------------------

    @rule(size=st.integers(1, 4096))
    def take_fragment(self, size: int) -> None:
        if not self.open:
            return
        aligned = (size + 63) // 64 * 64
        if self.frag_page is not None and self.frag_offset + aligned > 4096:
            if self.fragments[self.frag_page]:
                self.frag_page = None
            else:
                self.count["cached"] += 1
                self.count["fast"] += 1
                self.frag_offset = 0
        there, expected = (True, self.frag_page) if self.frag_page is not None else self.model_take()
        page = self.pool.alloc_frag(size)
        if not there:
            assert page is None
            return
        assert page is not None
        if self.frag_page is None:
            self.note(expected, page.id)
            self.frag_page, self.frag_offset = page.id, 0
            self.fragments[page.id] = []
        assert (page.id, page.offset, len(page)) == (self.frag_page, self.frag_offset, aligned)
        self.frag_offset += aligned
        self.fragments[page.id].append(page)

    @precondition(lambda self: any(self.fragments.values()))
    @rule(data=st.data(), drop=st.booleans())
    def put_fragment(self, data: Any, drop: bool) -> None:
        page_id = data.draw(st.sampled_from([page_id for page_id, out in self.fragments.items() if out]))
        assert self.pool.put_bulk(ids_of([page_id])) == 0
        fragment = self.fragments[page_id].pop()
        if not drop:
            fragment.put()
        del fragment
        if page_id != self.frag_page and not self.fragments[page_id]:
            del self.fragments[page_id]
            self.model_home(page_id, self.direct)

    # -- the rest ----------------------------------------------------------------------------------------------------

    @rule(direct=st.booleans())
    def set_direct(self, direct: bool) -> None:
        self.pool.direct_recycling = self.direct = direct

    @rule()
    def flush(self) -> None:
        if self.pool.is_owner:
            self.pool.update_nid(0)
            self.release += len(self.cache)
            self.cache = []

    @precondition(lambda self: self.hold > 300)
    @rule()
    def close(self) -> None:
        if self.open:
            self.pool.close()
            self.open = False
            self.release += len(self.cache) + len(self.ring)
            self.cache, self.ring = [], deque()
            if self.frag_page is not None and not self.fragments[self.frag_page]:
                del self.fragments[self.frag_page]
                self.release += 1
            self.frag_page = None

    @invariant()
    def agrees(self) -> None:
        self.pool.check()
        self.allocator.arena.check()
        stats = self.pool.stats()
        idle = self.frag_page is not None and not self.fragments[self.frag_page]
        assert (stats.in_cache, stats.in_ring) == (len(self.cache), len(self.ring))
        assert (stats.hold_cnt, stats.release_cnt, stats.inflight) == (
            self.hold,
            self.release,
            self.hold - self.release,
        )
        lent = len(self.bulk) + len(self.fragments) - idle + sum(not loan.detached for loan in self.loans)
        assert stats.lent == self.pool.lent == lent
        assert sum(holder.count for holder in self.pool.holders()) == lent
        assert stats.high_water == self.high_water
        kernel = {key.split("-", 1)[1].replace("-", "_"): value for key, value in stats.kernel().items()}
        assert {key: value for key, value in kernel.items() if value} == +self.count
        left_out = sum(loan.detached for loan in self.loans)
        assert used_pages(self.pool) == self.hold - self.release + left_out
        for loan in self.loans:
            if loan.holder and loan.handle is not None:
                assert loan.handle.is_live
                own = loan.holder + len(loan.views)
                assert loan.handle.refcount == own + len(loan.foreign)
        if self.mapped:
            assert len(self.device.mapped) == (self.hold - self.release if self.open else 0)
            assert self.device.unmapped_twice == []

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.close()
        for loan in self.loans:  # by hand: Hypothesis still refers to what it drew
            for view in loan.views:
                view.release()
            for page in (loan.handle, *loan.foreign):
                if page is not None and page.is_live:
                    page.put()
        for fragments in self.fragments.values():
            for page in fragments:
                page.put()
        self.pool.put_bulk(ids_of(self.bulk))
        assert (self.pool.inflight, self.pool.lent) == (0, 0)
        assert self.allocator.arena.nr_free_pages == self.allocator.arena.nr_added_pages
        assert (self.device.mapped, self.device.unmapped_twice) == ({}, [])


PoolMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
TestPool = PoolMachine.TestCase

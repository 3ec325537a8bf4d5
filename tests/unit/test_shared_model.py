# SPDX-License-Identifier: MIT
"""The books against a model: which page is with whom, whatever honest, hostile and dying borrowers do."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagepool import PageAllocator, PagePool
from pagepool.shared._borrower import CLOSED, REVOKED, Borrower, SharedRingError
from pagepool.shared._lender import Lender, Link, size_of_rings

SLOTS = 16
AT_GIVEN, AT_SENT, AT_TAKEN = 640, 256, 384


class Party:
    """A link, its borrower on the same rings, and what the model says about them."""

    def __init__(self, lender: Lender, pool: PagePool) -> None:
        self.memory = mmap.mmap(-1, size_of_rings(SLOTS))
        self.hold = ctypes.c_char.from_buffer(self.memory)
        vaddr = ctypes.addressof(self.hold)
        self.link = Link(lender, vaddr, SLOTS, -1, self.hold)
        arena = pool.arena
        self.borrower = Borrower(
            arena.base_vaddr, arena.size_bytes, 0, False, vaddr, size_of_rings(SLOTS), -1, self.hold
        )
        self.has: set[int] = set()  # the lender's view
        self.taken: list[int] = []  # descriptors that the borrower has read
        self.honest = True
        self.told = 0

    def room(self) -> int:
        return SLOTS - len(self.has) if self.link.open else 0

    def returns_there(self) -> int:
        return (self.word(AT_GIVEN) - self.link.returned_index) & 0xFFFFFFFF

    def word(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + 4], "little")


class Books(RuleBasedStateMachine):
    @initialize(pools=st.integers(1, 3))
    def begin(self, pools: int) -> None:
        self.allocator = PageAllocator(2 << 20, "memfd", commit=True)
        self.pools = [PagePool(memory=self.allocator, zero=True, pool_size=8) for _ in range(pools)]
        self.lender = Lender(self.allocator.arena)
        for pool in self.pools:
            self.lender.add_source(pool)
        self.parties: list[Party] = []
        self.mine: list[set[int]] = [set() for _ in self.pools]  # ids we hold, by pool
        self.with_others: dict[int, int] = {}  # id -> how many have it

    # -- the lender --

    @rule()
    @precondition(lambda self: len(self.parties) < 4)
    def somebody_comes(self) -> None:
        self.parties.append(Party(self.lender, self.pools[0]))

    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.pools) - 1))
        pool, mine = self.pools[which], self.mine[which]
        wanted = data.draw(st.integers(1, 12))
        mine.update(pool.alloc_bulk(max(0, wanted - len(mine))))
        ids = sorted(mine)[:wanted]
        spoilt = data.draw(st.sampled_from(["", "", "", "twice", "out of range", "lent already", "too long"]))
        good = len(ids)
        lengths = np.full(wanted, 60, np.uint32)
        if spoilt:
            good = data.draw(st.integers(0, len(ids) - 1))
            if spoilt == "twice" and good:
                ids[good] = ids[0]
            elif spoilt == "lent already" and self.with_others:
                ids[good] = min(self.with_others)
            elif spoilt == "too long":
                lengths[good] = 4097
            else:
                ids[good] = 512
        to = [party for party in self.parties if data.draw(st.booleans())]
        for party in to:
            if party.room() < len(ids):  # short of it: what it gave back is looked at first
                self.came_home(party)
        rooms = [party.room() for party in to]
        array = np.array(ids, np.uint32)
        done = self.lender.lend(tuple(party.link for party in to), pool, array, lengths[: len(ids)], 0, which, None)
        assert done == min(good, max(rooms, default=0))
        for party, room in zip(to, rooms, strict=True):
            for page_id in ids[: min(good, room)]:
                party.has.add(page_id)
                self.with_others[page_id] = self.with_others.get(page_id, 0) + 1
        mine.difference_update(ids[:done])

    @rule(data=st.data())
    def put_our_own(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.pools) - 1))
        ids = [page_id for page_id in self.mine[which] if data.draw(st.booleans())]
        assert self.pools[which].put_bulk(np.array(ids, np.uint32)) == len(ids)
        self.mine[which].difference_update(ids)

    def gone_from(self, party: Party, page_id: int) -> None:
        party.has.discard(page_id)
        self.with_others[page_id] -= 1
        if not self.with_others[page_id]:
            del self.with_others[page_id]

    @rule(data=st.data())
    @precondition(lambda self: self.parties)
    def reap(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.parties))
        there = party.returns_there()
        if there > SLOTS or party.link.dead:
            bad = party.link.bad_indexes
            assert party.link.reap() == 0
            assert party.link.bad_indexes == bad + (there > SLOTS)
            return
        assert party.word(768) >= 0
        expected = self.came_home(party)
        assert party.link.reap() == expected

    def came_home(self, party: Party) -> int:
        """Do in the model what a look at its returns does; how many pages nobody has any more."""
        there, base = party.returns_there(), 4096 + 32 * SLOTS
        home = 0
        if there > SLOTS or party.link.dead:
            return 0
        for number in range(there):
            at = base + (party.link.returned_index + number) % SLOTS * 4
            page_id = int.from_bytes(party.memory[at : at + 4], "little")
            if page_id in party.has:
                self.gone_from(party, page_id)
                home += page_id not in self.with_others
        return home

    @rule(data=st.data(), state=st.sampled_from([CLOSED, REVOKED]))
    @precondition(lambda self: self.parties)
    def stop(self, data: st.DataObject, state: int) -> None:
        party = data.draw(st.sampled_from(self.parties))
        party.link.stop(state)
        party.told = max(party.told, state)  # what was revoked stays revoked
        if party.honest:
            assert party.borrower.state == party.told

    @rule(data=st.data())
    @precondition(lambda self: self.parties)
    def somebody_dies(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.parties))
        assert party.link.recall() == len(party.has)
        for page_id in tuple(party.has):
            self.gone_from(party, page_id)
        assert party.link.recall() == 0
        if data.draw(st.booleans()):
            self.parties.remove(party)

    # -- borrowers --

    @rule(data=st.data())
    @precondition(lambda self: self.parties)
    def take(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.parties))
        budget = data.draw(st.integers(1, 20))
        block = np.empty((6, budget), np.uint32)
        try:
            n = party.borrower.take(block, budget)
        except SharedRingError:
            assert not party.honest
            return
        ids = block[0, :n].tolist()
        party.taken += ids
        if party.honest and not party.link.dead:
            assert set(ids) <= party.has
            assert len(set(ids)) == n

    @rule(data=st.data())
    @precondition(lambda self: self.parties)
    def give(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.parties))
        ids = [page_id for page_id in party.taken if data.draw(st.booleans())]
        assert party.borrower.put_bulk(np.array(ids, np.uint32)) == len(ids)
        for page_id in ids:
            party.taken.remove(page_id)

    @rule(data=st.data())
    @precondition(lambda self: self.parties)
    def scribble(self, data: st.DataObject) -> None:
        party = data.draw(st.sampled_from(self.parties))
        party.honest = False
        if data.draw(st.booleans()):
            at = data.draw(st.sampled_from([AT_GIVEN, AT_SENT, AT_TAKEN, 768, 512, 896, 128]))
            value = data.draw(st.one_of(st.integers(0, 40), st.integers(0, 0xFFFFFFFF)))
            party.memory[at : at + 4] = value.to_bytes(4, "little")
        else:
            at = 4096 + 32 * SLOTS + 4 * data.draw(st.integers(0, SLOTS - 1))
            value = data.draw(st.one_of(st.integers(0, 520), st.integers(0, 0xFFFFFFFF)))
            party.memory[at : at + 4] = value.to_bytes(4, "little")

    # -- what is always true --

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "lender"):
            return
        self.lender.check()
        for pool in self.pools:
            pool.check()
        assert self.lender.nr_shared == len(self.with_others)
        assert sum(pool.lent for pool in self.pools) == sum(map(len, self.mine)) + len(self.with_others)
        for party in self.parties:
            assert set(party.link.held_ids()) == party.has
            assert party.link.outstanding == len(party.has)
            assert 0 <= party.link.backlog <= len(party.has)

    def teardown(self) -> None:
        if not hasattr(self, "lender"):
            return
        for party in self.parties:
            party.link.recall()
        for pool, mine in zip(self.pools, self.mine, strict=True):
            pool.put_bulk(np.array(sorted(mine), np.uint32))
            assert pool.lent == 0
            pool.check()
            pool.close()
        assert self.allocator.arena.nr_free_pages == 512


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestBooks = Books.TestCase

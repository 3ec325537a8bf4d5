# SPDX-License-Identifier: MIT
"""One owner and many who give back, at once; the owner's bulk loops run without the GIL meanwhile.

The same tests are worth running on an interpreter with a GIL and on one without (``make test-ft``).
"""

from __future__ import annotations

import mmap
import os
import queue
import random
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from core_doubles import Scripted, ids_of, mapping, memory, used_pages

from pagepool import Page, PagePool
from pagepool.dma import Counting, HostDevice, MapGranularity
from pagepool.errors import DeadPageError, PagePoolError, PoolBusyError, PoolClosedError, WrongThreadError


@contextmanager
def running(*calls: Callable[[], object]) -> Iterator[None]:
    """Run every call on a thread of its own while the block runs; raise what one of them raised."""
    failed: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread hangs"
    finally:
        sys.setswitchinterval(interval)
    if failed:
        raise failed[0]


def give_back(pool: PagePool, work: queue.SimpleQueue[object], seed: int) -> None:
    chance = random.Random(seed)
    while (thing := work.get()) is not None:
        if isinstance(thing, array):
            half = chance.randrange(len(thing) + 1)
            assert pool.put_bulk(thing[:half]) + pool.put_bulk(thing[half:]) == len(thing)
        elif isinstance(thing, memoryview):
            thing.release()
        elif chance.random() < 0.5 and isinstance(thing, Page):
            pool.put_page(thing)
        del thing  # a handle that was not put is put by this


@pytest.mark.parametrize("granularity", [None, *MapGranularity])
def test_many_give_back_what_one_takes(granularity: MapGranularity | None) -> None:
    device = Counting(HostDevice(granularity=granularity)) if granularity else None
    fields = mapping(device) if device else {}
    pool = PagePool(memory=memory(8), pool_size=256, limit=3000, **fields)
    work: queue.SimpleQueue[object] = queue.SimpleQueue()
    givers = 3
    with running(*(lambda seed=seed: give_back(pool, work, seed) for seed in range(givers))):
        for step in range(150):
            if step % 3 == 0:
                work.put(pool.alloc_bulk(200))
            page = pool.dev_alloc_pages()
            if page is not None:
                if step % 2:
                    work.put(memoryview(page))
                work.put(page)
            del page
            fragment = pool.alloc_frag(1500)
            if fragment is not None:
                work.put(fragment)
            del fragment
            mine = pool.alloc_bulk(140)
            assert pool.put_bulk(mine) == len(mine)
        for _ in range(givers):
            work.put(None)
    pool.check()
    assert (pool.lent, pool.holders()) == (0, [])
    stats = pool.stats()
    assert stats.rejected == 0
    assert 0 <= pool.inflight - stats.in_cache - stats.in_ring <= 1  # the page being carved is in no tier
    if device and granularity is MapGranularity.PAGE:
        assert device.counts.mapped == pool.inflight
    pool.close()
    assert (pool.inflight, used_pages(pool)) == (0, 0)


def test_a_bulk_put_ends_at_its_last_id_while_the_owner_empties_the_ring() -> None:
    pool = PagePool(memory=memory(8), pool_size=256)
    work: queue.SimpleQueue[array[int] | None] = queue.SimpleQueue()
    counts: list[tuple[int, int]] = []

    def put_in_two() -> None:
        while (ids := work.get()) is not None:
            whole = memoryview(ids)  # the second part lies behind the first: ids that the first call must not put
            counts.append((pool.put_bulk(whole[:200]), pool.put_bulk(whole[200:])))

    with running(put_in_two, put_in_two):
        for _ in range(3000):
            work.put(pool.alloc_bulk(300))
            assert pool.put_bulk(pool.alloc_bulk(400)) == 400  # takes from the ring, sixty-four at a time
            while work.qsize() > 4:
                pass
        for _ in range(2):
            work.put(None)
    assert set(counts) == {(200, 100)}
    pool.check()
    assert (pool.lent, pool.stats().rejected) == (0, 0)


_CHANGE = """
import mmap, os, sys
import numpy as np
parent = os.getppid()
rows = np.frombuffer(mmap.mmap(int(sys.argv[1]), 0), np.uint32).reshape(3, -1)
print("ready", flush=True)
while os.getppid() == parent:  # not for ever, should nobody be left to kill it
    for _ in range(1000):
        rows[0] = rows[1]
        rows[0] = rows[2]
"""


@pytest.mark.parametrize("direct", [False, True])
def test_ids_that_change_while_they_are_put_are_each_looked_at_once(direct: bool) -> None:
    n = 120
    fd = os.memfd_create("ids")
    os.ftruncate(fd, 3 * 4 * n)
    rows = np.frombuffer(mmap.mmap(fd, 0), np.uint32).reshape(3, n)
    pool = PagePool(memory=memory(), pool_size=256)
    pool.direct_recycling = direct
    # A process, because it needs no GIL to write to what all of them have mapped.
    child = subprocess.Popen(
        [sys.executable, "-c", _CHANGE, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    os.close(fd)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            for _ in range(2000):
                assert (pool.alloc_bulk(rows[1]), pool.alloc_bulk(rows[2])) == (n, n)
                pool.put_bulk(rows[0])
                pool.put_bulk(rows[1])  # what was not among those that were seen
                pool.put_bulk(rows[2])
                assert (pool.lent, pool.inflight) == (0, 256)  # each of them came home, once
        finally:
            child.kill()
    pool.check()


def test_one_id_put_by_two_threads_is_home_once() -> None:
    pool = PagePool(memory=memory(), pool_size=1024)
    rounds, n = 60, 300
    barrier = threading.Barrier(2)
    shared: list[array[int]] = [ids_of([])]
    counts = [0, 0]

    def other() -> None:
        for _ in range(rounds):
            barrier.wait()
            counts[1] += pool.put_bulk(shared[0])
            barrier.wait()

    with running(other):
        for _ in range(rounds):
            shared[0] = pool.alloc_bulk(n)
            assert len(set(shared[0])) == n
            barrier.wait()
            counts[0] += pool.put_bulk(shared[0])
            barrier.wait()
            pool.check()
            again = pool.alloc_bulk(n)
            assert len(set(again)) == n  # no page is ever handed out twice
            pool.put_bulk(again)
    assert sum(counts) >= rounds * n
    pool.check()
    pool.close()
    assert (pool.inflight, used_pages(pool)) == (0, 0)


def test_one_handle_put_by_two_threads_is_put_once() -> None:
    pool = PagePool(memory=memory())
    rounds = 300
    barrier = threading.Barrier(2)
    shared: list[Page] = [pool.alloc_pages()]
    won = [0, 0]

    def put(side: int) -> None:
        try:
            pool.put_page(shared[0])
            won[side] += 1
        except DeadPageError:
            pass

    def other() -> None:
        for _ in range(rounds):
            barrier.wait()
            put(1)
            barrier.wait()

    with running(other):
        for _ in range(rounds):
            barrier.wait()
            put(0)
            # What comes next must not be reached through the old handle.
            fresh = [pool.alloc_pages() for _ in range(3)]
            barrier.wait()
            assert all(page.is_live for page in fresh)
            assert len({page.id for page in fresh}) == 3
            assert pool.lent == 3
            for page in fresh[1:]:
                page.put()
            shared[0] = fresh[0]
            del fresh, page
    assert sum(won) == rounds
    shared[0].put()
    pool.check()
    assert pool.lent == 0


def test_views_made_and_ended_by_threads_while_the_page_is_put() -> None:
    pool = PagePool(memory=memory())
    rounds = 200
    barrier = threading.Barrier(3)
    shared: list[Page] = [pool.alloc_pages()]

    def look() -> None:
        for _ in range(rounds):
            barrier.wait()
            for _ in range(3):
                try:
                    with memoryview(shared[0]) as view:
                        view[0] = 1
                except (DeadPageError, BufferError):
                    break
            barrier.wait()

    with running(look, look):
        for _ in range(rounds):
            barrier.wait()
            shared[0].put()
            barrier.wait()
            pool.check()
            shared[0] = pool.alloc_pages()
    shared.clear()
    pool.check()
    assert pool.lent == 0


def test_foreign_references_taken_and_given_by_threads() -> None:
    pool = PagePool(memory=memory())
    rounds = 150
    barrier = threading.Barrier(3)
    shared: list[Page] = [pool.alloc_pages()]

    def keep() -> None:
        for _ in range(rounds):
            barrier.wait()
            try:
                held = pool.get_page(shared[0])
                held[0] = 1
                held.put()
            except PagePoolError:
                pass
            barrier.wait()

    with running(keep, keep):
        for _ in range(rounds):
            barrier.wait()
            pool.put_page(shared[0])
            barrier.wait()
            pool.check()
            assert pool.lent == 0
            shared[0] = pool.alloc_pages()
    shared.clear()
    pool.close()
    assert (pool.inflight, used_pages(pool)) == (0, 0)


def test_pages_released_while_their_views_end() -> None:
    pool = PagePool(memory=memory())
    rounds = 300
    barrier = threading.Barrier(3)
    shared: list[Page] = [pool.alloc_pages()]

    def look() -> None:
        for _ in range(rounds):
            barrier.wait()
            for _ in range(3):
                with suppress(PagePoolError, BufferError), memoryview(shared[0]) as view:
                    view[0] = 1
            barrier.wait()

    with running(look, look):
        for _ in range(rounds):
            barrier.wait()
            with suppress(PagePoolError):  # a view of another was just beginning or ending
                pool.release_page(shared[0])
            shared[0].put()
            barrier.wait()
            assert (pool.lent, used_pages(pool)) == (0, pool.inflight)
            shared[0] = pool.alloc_pages()
    shared.clear()
    pool.check()
    pool.close()
    assert (pool.inflight, used_pages(pool)) == (0, 0)


def test_figures_and_hooks_while_the_owner_works() -> None:
    pool = PagePool(memory=memory(8), pool_size=64)
    stop = threading.Event()
    seen: list[str] = []

    def look() -> None:
        while not stop.is_set():
            stats = pool.stats()
            if not (0 <= stats.in_ring <= 64 and 0 <= stats.in_cache <= 128):
                seen.append(f"{stats.in_ring} in the ring, {stats.in_cache} in the cache")
            repr(pool), pool.lent, pool.holders()

    def change() -> None:
        while not stop.is_set():
            pool.set_observer(lambda event, page_id, count: None)
            pool.on_watermark(5, 2, lambda which, above: None)
            pool.set_observer(None)

    with running(look, change):
        try:
            for _ in range(300):
                fragments = [pool.alloc_frag(1500) for _ in range(5)]
                ids = pool.alloc_bulk(400)
                assert pool.put_bulk(ids) == 400
                fragments.clear()
        finally:
            stop.set()
    assert seen == []
    pool.check()
    assert pool.lent == 0


def test_only_the_owner_takes() -> None:
    pool = PagePool(memory=memory())
    page, fragment = pool.alloc_pages(), pool.alloc_frag(64)

    def stranger() -> None:
        doors: list[Callable[[], object]] = [
            pool.alloc_pages,
            pool.dev_alloc_pages,
            lambda: pool.alloc_bulk(1),
            lambda: pool.alloc_frag(64),
            lambda: pool.alloc(64),
            lambda: pool.update_nid(0),
            lambda: pool.recycle_direct(page),
            lambda: pool.put_page(page, allow_direct=True),
        ]
        for door in doors:
            with pytest.raises(WrongThreadError):
                door()
        assert not pool.is_owner
        assert page.is_live

    with running(stranger):
        pass
    assert pool.lent == 2
    page.put()
    assert fragment is not None
    assert pool.stats().cached == 1


def test_claim_moves_the_pool() -> None:
    pool = PagePool(memory=memory())
    pool.alloc_pages().put()

    def claimant() -> None:
        pool.claim()
        assert pool.is_owner
        pool.recycle_direct(pool.alloc_pages())

    with running(claimant):
        pass
    with pytest.raises(WrongThreadError):
        pool.alloc_pages()
    pool.claim()
    assert pool.alloc_pages().is_live


@pytest.mark.parametrize("act", ["close", "claim"])
def test_close_and_claim_wait_outside_while_the_owner_is_inside(act: str) -> None:
    inside, done = threading.Event(), threading.Event()
    device = Scripted()
    pool = PagePool(memory=memory(), **mapping(device))
    outcome: list[object] = []

    def interfere() -> None:
        inside.wait(30)
        try:
            getattr(pool, act)()
            outcome.append("done")
        except PoolBusyError as error:
            outcome.append(error)
        done.set()

    def on_map(vaddr: int) -> None:
        device.on_map = None
        inside.set()
        assert done.wait(30)

    device.on_map = on_map
    with running(interfere):
        ids = pool.alloc_bulk(200)
    assert len(ids) == 200
    assert isinstance(outcome[0], PoolBusyError)
    assert pool.put_bulk(ids) == 200


def test_close_in_the_middle_of_everything() -> None:
    for seed in range(30):
        pool = PagePool(memory=memory(2), pool_size=64)
        ids = pool.alloc_bulk(400)
        pages = [pool.page(page_id) for page_id in ids[:50]]
        views = [memoryview(page) for page in pages[:20]]
        rest = ids[50:]
        barrier = threading.Barrier(4)
        closed: list[bool] = []

        def close(pool: PagePool = pool, barrier: threading.Barrier = barrier, closed: list[bool] = closed) -> None:
            barrier.wait()
            while not closed:
                try:
                    pool.close()
                    closed.append(True)
                except PoolBusyError:
                    pass

        def put_bulk(pool: PagePool = pool, barrier: threading.Barrier = barrier, rest: array[int] = rest) -> None:
            barrier.wait()
            for start in range(0, len(rest), 150):
                pool.put_bulk(rest[start : start + 150])

        def put_pages(
            pages: list[Page] = pages, views: list[memoryview] = views, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            for page in pages[:25]:
                page.put()
            pages.clear()
            for view in views:
                view.release()

        with running(close, put_bulk, put_pages):
            barrier.wait()
            try:
                for _ in range(seed):
                    pool.put_bulk(pool.alloc_bulk(3))
                    pool.dev_alloc_pages()
            except PoolClosedError:
                pass
        pool.check()
        assert (pool.closed, pool.inflight, pool.lent, used_pages(pool)) == (True, 0, 0, 0)


def test_pools_of_threads_share_an_allocator() -> None:
    allocator = memory(8)

    def churn() -> None:
        for order in (0, 1, 0):
            with PagePool(memory=allocator, order=order) as pool:
                for n in (10, 300, 64):
                    ids = pool.alloc_bulk(n >> order)
                    pages = [pool.alloc_pages() for _ in range(20)]
                    assert pool.put_bulk(ids) == len(ids)
                    pages.clear()
                    pool.check()

    with running(churn, churn, churn):
        pass
    allocator.arena.check()
    assert allocator.arena.nr_free_pages == allocator.arena.nr_added_pages


def test_pools_made_at_once_are_different_ones() -> None:
    allocator = memory(8)
    barrier = threading.Barrier(4)

    def make() -> None:
        for _ in range(40):
            barrier.wait()
            pool = PagePool(memory=allocator)
            ids = pool.alloc_bulk(8)
            barrier.wait()
            assert len(pool.holders()[0].ids) == 8  # by the slot in each page's word
            assert pool.put_bulk(ids) == 8
            pool.close()

    with running(make, make, make, make):
        pass
    allocator.arena.check()
    assert allocator.arena.nr_free_pages == allocator.arena.nr_added_pages

# SPDX-License-Identifier: MIT
"""Threads of one process, each at the worst moment for the other: while it lends, takes, gives back, looks, closes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, Stranger, eventually

import pagepool as pp
from pagepool import SharedPool
from pagepool.errors import PagePoolError, PoolBusyError, PoolClosedError, WrongThreadError
from pagepool.shared import HandshakeError


@contextmanager
def over_and_over(*works: Callable[[], object]) -> Iterator[None]:
    """Do something in other threads until the end; what one of them raises is raised."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not errors, errors


SCRIBBLER = """
import mmap, os, numpy as np
parent = os.getppid()
array = np.frombuffer(mmap.mmap(int(sys.argv[1]), 4 * int(sys.argv[2])), np.uint32)
values = np.array(sys.argv[3].split(","), np.uint32)
rows = [np.random.default_rng(seed).permutation(values)[: len(array)] for seed in range(4)]
bad = [np.full(len(array), page_id, np.uint32) for page_id in (0xFFFFFFFF, 1 << 30)]
array[:] = rows[0]
print("ready", flush=True)
while os.getppid() == parent:  # not for ever, should nobody be left to kill it
    for row in (*rows, *rows, bad[0], *rows, *rows, bad[1]) * 100:
        array[:] = row
"""


@contextmanager
def an_array_with_a_life_of_its_own(count: int, values: list[int]) -> Iterator[np.ndarray]:  # type: ignore[type-arg]
    """Share an array with a process that writes the values into it in some order, then ids of nothing, and so on."""
    file = os.memfd_create("array")
    words = ",".join(map(str, values))
    program = "import sys\n" + SCRIBBLER
    try:
        os.ftruncate(file, 4 * count)
        array = np.frombuffer(mmap.mmap(file, 4 * count), np.uint32)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(file), str(count), words], pass_fds=[file], stdout=subprocess.PIPE
        ) as child:
            try:
                assert child.stdout is not None
                child.stdout.readline()
                yield array
            finally:
                child.kill()
    finally:
        os.close(file)


def test_an_array_that_is_written_to_while_it_is_lent() -> None:
    """What was looked at is what is lent: none but the caller's pages, each once."""
    with SharedPool(pages=512, max_pages=512) as shared, pp.attach(shared.connect()) as queue:
        assert shared.wait_for_consumers(1, PATIENCE_S)
        (consumer,) = shared.consumers
        kept = [shared.pool.alloc_pages() for _ in range(12)]
        mine = shared.pool.alloc_bulk(500).tolist()  # and there are no more
        lengths = np.full(500, 60, np.uint32)
        with an_array_with_a_life_of_its_own(500, mine) as array:
            for _ in range(1000):
                done = shared.send(array, lengths)
                held = consumer.link.held_ids()
                assert len(held) == done
                assert set(held) <= set(mine)
                while done:
                    batch = next(queue.poll_forever(512, timeout=PATIENCE_S))
                    assert set(batch.ids.tolist()) <= set(held)
                    done -= len(batch)
                    batch.complete()
                eventually(lambda: shared.reap() >= 0 and consumer.link.outstanding == 0)
                assert sorted(shared.pool.alloc_bulk(len(held)).tolist()) == held
        assert all(page.is_live for page in kept)
        assert shared.pool.put_bulk(np.array(mine, np.uint32)) == 500
        shared.check()
        assert shared.pool.stats().rejected == 0
        for page in kept:
            page.put()


def test_an_array_that_is_written_to_while_it_is_given_back() -> None:
    with SharedPool(pages=512, max_pages=512) as shared, pp.attach(shared.connect()) as queue:
        assert shared.wait_for_consumers(1, PATIENCE_S)
        with an_array_with_a_life_of_its_own(512, list(range(512))) as array:
            for _ in range(500):
                ids = np.array(shared.pool.alloc_bulk(400), np.uint32)
                assert shared.send(ids) == 400
                batch = next(queue.poll_forever(512, timeout=PATIENCE_S))
                given = queue.pool.put_bulk(array)
                assert queue.pool.lent == 400 - given
                batch.complete()
                assert queue.pool.lent == 0
                eventually(lambda: shared.reap() >= 0 and shared.pool.lent == 0)
        shared.check()
        assert (shared.pool.stats().rejected, shared.consumers[0].stats().bad_returns) == (0, 0)


def test_a_queue_that_is_closed_while_it_is_polled() -> None:
    """What the close gave back is not taken too."""
    for _ in range(60):
        with SharedPool(pages=512, max_pages=64) as shared:
            queue = pp.attach(shared.connect())
            assert shared.wait_for_consumers(1, PATIENCE_S)
            (consumer,) = shared.consumers
            borrower = queue.pool.borrower
            block = np.empty((6, 256), np.uint32)
            started = threading.Barrier(2)

            def take(borrower=borrower, block=block, started=started, queue=queue) -> None:  # type: ignore[no-untyped-def]
                started.wait()
                for _ in range(300):
                    borrower.put_bulk(block[0, : borrower.take(block, 256)].copy())

            thread = threading.Thread(target=take)
            thread.start()
            started.wait()
            for _ in range(20):
                shared.send(np.array(shared.pool.alloc_bulk(8), np.uint32))
            with suppress(PoolBusyError):
                queue.close()
            thread.join()
            queue.close()
            eventually(lambda: shared.reap() >= 0 and not shared.consumers)
            stats = consumer.stats()
            assert (stats.bad_ids, stats.bad_returns, stats.recalled) == (0, 0, 0)
            shared.check()


def test_the_books_are_right_while_consumers_come_and_go() -> None:
    with SharedPool(pages=512, max_pages=64) as shared:

        def come_and_go() -> None:
            with pp.attach(shared.connect(), timeout=PATIENCE_S) as queue:
                for batch in queue.poll_forever(timeout=0.01):
                    batch.complete()
                    break

        with over_and_over(come_and_go, come_and_go, shared.lender.check, shared.stats, shared.holders):
            for _ in range(3000):
                ids = np.array(shared.pool.alloc_bulk(4), np.uint32)
                shared.pool.put_bulk(ids[shared.send(ids) :])
        shared.close(PATIENCE_S)
        assert shared.pool.lent == 0
        assert shared.stats().attached > 0


def test_pages_come_home_while_their_pool_changes_hands() -> None:
    """Whoever brings them home may have been the pool's owner a moment ago."""
    with SharedPool(pages=512, max_pages=64) as shared, Stranger(shared) as stranger:

        def claim_and_reap() -> None:
            with suppress(PoolBusyError):
                shared.pool.claim()
            shared.reap()

        with over_and_over(claim_and_reap, claim_and_reap):
            for _ in range(2000):
                with suppress(PoolBusyError, WrongThreadError):
                    shared.pool.claim()
                    ids = np.array(shared.pool.alloc_bulk(8), np.uint32)
                    shared.pool.put_bulk(ids[shared.send(ids) :])
                    stranger.give(*ids.tolist())
        stranger.close()
        eventually(lambda: shared.pool.lent == 0)
        shared.pool.claim()
        shared.check()


def test_revoked_by_one_thread_while_another_lends() -> None:
    with SharedPool(pages=512, max_pages=64) as shared:
        for _ in range(30):
            with Stranger(shared) as stranger:
                (consumer,) = shared.consumers
                thread = threading.Thread(target=consumer.revoke)
                for turn in range(40):
                    ids = np.array(shared.pool.alloc_bulk(8), np.uint32)
                    if turn == 20:
                        thread.start()
                    shared.pool.put_bulk(ids[consumer.send(ids) :])
                    with suppress(ConnectionError):
                        stranger.give(*ids.tolist())
                    shared.reap()
                thread.join()
                assert shared.wait_until_gone(PATIENCE_S)
            assert shared.pool.lent == 0
            shared.check()


def test_closed_by_one_thread_while_others_come_and_lend() -> None:
    for _ in range(20):
        shared = SharedPool(pages=512, max_pages=64)

        def come(shared: SharedPool = shared) -> None:
            with suppress(PoolClosedError, HandshakeError, ConnectionError), shared.connect() as theirs:
                pp.attach(theirs.detach(), timeout=PATIENCE_S).close()

        def lend(shared: SharedPool = shared) -> None:
            with suppress(PoolClosedError):
                ids = np.array(shared.pool.alloc_bulk(4), np.uint32)
                sent = 0
                try:
                    sent = shared.send(ids)
                finally:
                    shared.pool.put_bulk(ids[sent:])

        with over_and_over(come, come, lend):
            eventually(lambda shared=shared: shared.stats().attached > 3)
            assert shared.close(0.2) == []
        assert shared.consumers == ()
        assert shared.service.nr_visitors == 0
        assert shared.pool.lent == 0


@pytest.mark.parametrize("kind", ["page", "ids"])
def test_one_page_lent_by_two_threads_is_lent_once(kind: str) -> None:
    with SharedPool(pages=512, max_pages=256) as shared, Stranger(shared):
        for _ in range(200):
            page = shared.pool.alloc_pages()
            what = page if kind == "page" else shared.pool.alloc_bulk(1)
            if kind == "ids":
                page.put()
            start, sent = threading.Barrier(2), []

            def send(what=what, start=start, sent=sent) -> None:  # type: ignore[no-untyped-def]
                start.wait()
                with suppress(PagePoolError):
                    sent.append(int(shared.send(what)))

            threads = [threading.Thread(target=send) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(sent) == 1
        shared.check()
        assert shared.consumers[0].link.outstanding == 200

# SPDX-License-Identifier: MIT
"""Hostile processes write noise over every word that they can reach, at full speed, while honest ones work.

A second here; ``HAMMER_S=600 pytest tests/unit/test_shared_hammer.py`` for as long as one likes, and on an interpreter
without a GIL by ``HAMMER_S=60 tests/on_python.sh 3.14t tests/unit/test_shared_hammer.py``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, line_of, process

from pagepool import PagePool, SharedPool
from pagepool.memory import PageAllocator

SECONDS = float(os.environ.get("HAMMER_S", "1"))
PAGES = 2048

# Plain noise hardly ever gets past the first look at it: most of what is written here could be true.
HOSTILE = """
import mmap, numpy as np
from pagepool.shared.wire import Hello, Ready, check_accepted, receive_welcome
writable, seed = sys.argv[2] == "True", int(sys.argv[3])
sock.send(Hello(writable).pack())
welcome, arena_fd, rings_fd = receive_welcome(sock)
arena = mmap.mmap(arena_fd, welcome.arena_bytes, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
rings = np.frombuffer(mmap.mmap(rings_fd, welcome.rings_bytes), np.uint32)
sock.send(Ready(welcome.arena_id, welcome.arena_inode).pack())
check_accepted(sock.recv(512))
sock.setblocking(False)
print("ready", flush=True)
chance = np.random.default_rng(seed)
slots, pages = welcome.slots, welcome.arena_bytes >> 12
TAKEN, BELL, GIVEN, REAPED, LENDER_BELL = 96, 128, 160, 192, 224
words = rings[:1024]
sent = rings[1024 : 1024 + 8 * slots].reshape(slots, 8)
given = rings[1024 + 8 * slots : 1024 + 9 * slots]
bytes_of_arena = np.frombuffer(arena, np.uint8)
while True:
    for what in chance.integers(0, 12, 64).tolist():
        if what == 0:
            reaped = words[REAPED].copy()
            rings[:] = chance.integers(0, 1 << 32, len(rings), np.uint32)
            words[REAPED] = reaped  # only for us to find the way back; the lender never reads it
        elif what == 1:
            reaped = words[REAPED].copy()
            words[chance.integers(0, 1024)] = chance.integers(0, 1 << 32)
            words[REAPED] = reaped
        elif what < 5:
            words[GIVEN] = words[REAPED] + np.uint32(chance.integers(0, slots + 2))
        elif what < 7:
            given[:] = chance.integers(0, pages + 2, slots, np.uint32)
        elif what < 9:
            given[:] = sent[:, 0]
        elif what == 9:
            sent[:] = chance.integers(0, pages, sent.shape, np.uint32)
        elif what == 10:
            words[BELL] = words[LENDER_BELL] = 1
            words[TAKEN] = chance.integers(0, 1 << 32)
        elif writable:
            at = int(chance.integers(0, len(bytes_of_arena) - 4096))
            bytes_of_arena[at : at + 4096] = what
        try:
            sock.send(b"x" * int(chance.integers(1, 100)))
        except BlockingIOError:
            pass
"""

# Every frame is its page's number, over and over, and stays that for as long as it is held.
HONEST = """
import numpy as np, pagepool
queue = pagepool.attach(sock)
print("ready", flush=True)
seen = 0
held = []
for batch in queue.poll_forever(timeout=60):
    frames = [np.frombuffer(page, np.uint64) for page in batch.keep()] if seen % 3 == 0 else []
    window = batch.headers(64)[:, :]
    for number, page_id in enumerate(batch.ids.tolist()):
        assert (window[number].view(np.uint64) & 0xFFFFFFFF == page_id).all(), (page_id, window[number])
    for frame in held:
        assert (frame[:512] == frame[0]).all(), "written to while it was held"
    held = frames
    seen += len(batch)
frames = held = batch = None
queue.close()
print(seen, flush=True)
"""


class Lending:
    """What one thread of the lender does over and over with a pool of its own."""

    def __init__(self, shared: SharedPool, pool: PagePool, *, stamped: bool) -> None:
        self.shared = shared
        self.pool = pool
        self.stamped = stamped
        self.sent = 0
        self.rows = np.frombuffer(shared.allocator.view(), np.uint64).reshape(-1, 512)
        self.chance = np.random.default_rng(pool.id)

    def turn(self) -> None:
        if self.chance.random() < 0.3:
            self.lend_a_handle()
            return
        ids = np.array(self.pool.alloc_bulk(int(self.chance.integers(1, 200))), np.uint32)
        if self.stamped:
            self.rows[ids] = (ids + (np.uint64(self.sent) << np.uint64(32)))[:, None]
        done = self.shared.send(ids, 4096)
        self.sent += done
        assert self.pool.put_bulk(ids[done:]) == len(ids) - done

    def lend_a_handle(self) -> None:
        page = self.pool.dev_alloc_pages()
        if page is None:
            return
        if self.stamped:
            self.rows[page.id] = page.id
        if self.shared.send(page):
            assert not page.is_live
            self.sent += 1
        else:
            page.put()


def until(stop: threading.Event, work: Callable[[], object], errors: list[BaseException]) -> threading.Thread:
    def run() -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)
            stop.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("writable", [False, True], ids=["readers", "writers"])
def test_noise_over_every_word_from_other_processes(writable: bool) -> None:
    """Nothing is lost, nobody crashes, and no page is touched that was not with the hostile ones."""
    errors: list[BaseException] = []
    stop = threading.Event()
    with ExitStack() as stack:
        memory = stack.enter_context(PageAllocator(PAGES << 12, "memfd", commit=True))
        pools = [stack.enter_context(PagePool(memory=memory, zero=True, pool_size=PAGES)) for _ in range(2)]
        # Of another arena, of this one but not lent, and of this one as bare ids.
        stranger = stack.enter_context(PagePool(memory=PageAllocator(4 << 20, "memfd", commit=True), pool_size=1024))
        others = [stranger.alloc_pages() for _ in range(256)]
        kept = [pools[0].alloc_pages() for _ in range(64)]
        bare = np.array(pools[0].alloc_bulk(64), np.uint32)
        for page in others:
            memoryview(page)[:] = b"\xa5" * 4096
        pools[0].claim()
        shared = stack.enter_context(SharedPool(pools, max_pages=256, writable=writable))
        hostile = [stack.enter_context(process(shared, HOSTILE, str(writable), str(seed))) for seed in range(2)]
        honest = None if writable else stack.enter_context(process(shared, HONEST))
        for child in (*hostile, *([honest] if honest else [])):
            assert line_of(child) == "ready"
        assert shared.wait_for_consumers(3 if honest else 2, PATIENCE_S)
        lendings = [Lending(shared, pool, stamped=not writable) for pool in pools]

        def look() -> None:
            shared.stats()
            shared.holders()
            shared.lender.check()
            shared.reap()
            time.sleep(0.001)

        threads = [until(stop, look, errors)]
        for lending in lendings:
            threads.append(until(stop, claimed(lending), errors))
        stop.wait(SECONDS)
        hostile[0].kill()
        assert shared.consumers
        stop.wait(SECONDS / 4)
        for consumer in shared.consumers:
            if consumer.peer.pid == hostile[1].pid:
                consumer.revoke()
        stop.wait(SECONDS / 4)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert not errors, errors
        figures = shared.stats()
        hostile[1].kill()
        assert shared.close(timeout=PATIENCE_S) == [] or writable
        assert shared.wait_until_gone(PATIENCE_S)
        if honest:
            assert int(line_of(honest)) > 0, honest.wait(PATIENCE_S)
        for page in others:
            assert bytes(page) == b"\xa5" * 4096
        assert all(page.is_live for page in (*others, *kept))
        eventually(lambda: [pool.lent for pool in pools] == [128, 0])
        shared.check()
        for pool in (*pools, stranger):
            assert pool.stats().rejected == 0
        assert figures.rejected == 0
        assert sum(lending.sent for lending in lendings) > 0
        pools[0].put_bulk(bare)
        for page in (*kept, *others):
            page.put()


def claimed(lending: Lending) -> Callable[[], None]:
    """Return its turn, the first of which makes the thread the owner of the pool."""
    mine = False

    def turn() -> None:
        nonlocal mine
        if not mine:
            lending.pool.claim()
            mine = True
        lending.turn()

    return turn

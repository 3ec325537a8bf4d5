# SPDX-License-Identifier: MIT
"""Consumers that end, at any instruction, lose nothing: each page comes home exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, Stranger, eventually, line_of, process, the_consumer

import pagepool as pp
from pagepool.shared import ConsumerState, SharedPool

SPEAK = """
from pagepool.shared.wire import Hello, Ready, receive_welcome, check_accepted
import mmap
def here(): print("here", flush=True); time.sleep(100)
"""

# A consumer that stops at a step of its life, and is killed there.
STEPS = {
    "before a word": SPEAK + "here()",
    "after hello": SPEAK + "sock.send(Hello(False).pack()); here()",
    "after mapping": SPEAK
    + "sock.send(Hello(False).pack()); w, a, r = receive_welcome(sock); m = mmap.mmap(a, 0, prot=1); here()",
    "after ready": SPEAK
    + "sock.send(Hello(False).pack()); w, a, r = receive_welcome(sock); "
    + "sock.send(Ready(w.arena_id, w.arena_inode).pack()); here()",
}
ATTACHED = {
    "attached, nothing taken": "here()",
    "descriptors taken": "b = queue.poll(); here()",
    "frames kept": "b = queue.poll(); k = b.keep(); b.complete(); here()",
    "some given back": "b = queue.poll(3); b.complete(); b = queue.poll(3); here()",
    "returns written, not published": """
b = queue.poll(); ids = b.ids.tolist()
from pagepool.shared._lender import MOST_SLOTS
at = base + 4096 + 32 * slots
for k, i in enumerate(ids): ctypes.c_uint32.from_address(at + 4 * k).value = i
here()""",
    "half of the returns published": """
b = queue.poll(); ids = b.ids.tolist()
at = base + 4096 + 32 * slots
for k, i in enumerate(ids): ctypes.c_uint32.from_address(at + 4 * k).value = i
ctypes.c_uint32.from_address(base + 640).value = len(ids) // 2
here()""",
    "all given back": "b = queue.poll(); b.complete(); here()",
    "closed, with a page kept": "b = queue.poll(); k = b.keep(); queue.close(); here()",
}
PRELUDE = """
import pagepool, ctypes
from pagepool.shared import attached_queue
def here(): print("here", flush=True); time.sleep(100)
seen = []
real = attached_queue.Borrower
def spy(*a): seen.append(a); return real(*a)
attached_queue.Borrower = spy
queue = pagepool.attach(sock)
base, slots = seen[0][4], 64
print("attached", flush=True)
sys.stdin.readline()
"""


def kill(child: subprocess.Popen[str], how: str) -> None:
    if how == "stopped first":
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
    child.kill()
    child.wait(PATIENCE_S)


@pytest.mark.parametrize("how", ["at once", "stopped first"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_during_the_handshake(step: str, how: str) -> None:
    with SharedPool(pages=512) as shared:
        with process(shared, STEPS[step]) as child:
            assert line_of(child) == "here"
            kill(child, how)
        eventually(lambda: shared.lender.nr_links == 0 and not shared.service.nr_visitors and not shared.consumers)
        ids = np.array(shared.pool.alloc_bulk(4), np.uint32)
        assert shared.send(ids) == 0
        assert shared.pool.put_bulk(ids) == 4
        shared.check()


@pytest.mark.parametrize("writable", [False, True], ids=["reader", "writer"])
@pytest.mark.parametrize("how", ["at once", "stopped first"])
@pytest.mark.parametrize("step", ATTACHED)
def test_killed_at_a_step(step: str, how: str, writable: bool) -> None:
    attach = PRELUDE.replace("attach(sock)", f"attach(sock, writable={writable})")
    with SharedPool(pages=512, max_pages=64, writable=writable) as shared:
        with process(shared, attach + ATTACHED[step]) as child:
            assert line_of(child) == "attached"
            consumer = the_consumer(shared)
            ids = np.array(shared.pool.alloc_bulk(10), np.uint32)
            assert shared.send(ids, 60) == 10
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            assert line_of(child) == "here"
            shared.check()
            kill(child, how)
            assert shared.wait_until_gone(PATIENCE_S)
        stats = consumer.stats()
        assert stats.returned + stats.recalled == 10
        assert stats.outstanding == 0
        assert consumer.state is ConsumerState.GONE
        assert shared.pool.lent == 0
        shared.check()
        again = shared.pool.alloc_bulk(512)  # every page of the arena, each once
        assert sorted(again) == [*range(512)]
        assert shared.pool.put_bulk(again) == 512


BUSY = """
import pagepool, random
kept = []
with pagepool.attach(sock, writable=sys.argv[2] == "True") as queue:
    for batch in queue.poll_forever(17):
        kept += batch.keep(slice(0, None, 3))
        random.shuffle(kept)
        del kept[20:]
        if random.random() < 0.5:
            batch.complete()
"""


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments(seed: int) -> None:
    chance = random.Random(seed)
    writable = seed % 2 == 1
    total = lost = 0
    with SharedPool(pages=512, max_pages=128, writable=writable) as shared:
        for _ in range(3):
            with process(shared, BUSY, str(writable)) as child, process(shared, BUSY, str(writable)) as other:
                assert shared.wait_for_consumers(2, PATIENCE_S), shared.stats()
                consumers = shared.consumers
                end = time.monotonic() + chance.uniform(0.01, 0.12)
                while time.monotonic() < end:
                    ids = np.array(shared.pool.alloc_bulk(chance.randrange(1, 40)), np.uint32)
                    to = chance.choice([None, consumers[0], consumers[1]])
                    done = shared.send(ids, 60, to=to)
                    shared.pool.put_bulk(ids[done:])
                    total += done
                if chance.random() < 0.5:
                    child.send_signal(signal.SIGSTOP)
                child.kill()
                other.kill()
                assert shared.wait_until_gone(PATIENCE_S)
                for consumer in consumers:
                    stats = consumer.stats()
                    assert stats.sent == stats.returned + stats.recalled
                    assert (stats.bad_ids, stats.bad_returns, stats.bad_indexes) == (0, 0, 0)
                    lost += stats.recalled
            shared.check()
            assert shared.pool.lent == 0
        assert total > 0
        assert shared.stats().lost == lost
        assert sorted(shared.pool.alloc_bulk(512)) == [*range(512)]


def test_a_page_with_two_comes_home_when_both_are_dead() -> None:
    program = PRELUDE + "b = queue.poll(); here()"
    with SharedPool(pages=512) as shared, process(shared, program) as one, process(shared, program) as two:
        for child in (one, two):
            assert line_of(child) == "attached"
        assert shared.wait_for_consumers(2, PATIENCE_S)
        shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
        one.kill()
        eventually(lambda: len(shared.consumers) == 1)
        shared.check()
        assert shared.pool.lent == 10
        two.kill()
        assert shared.wait_until_gone(PATIENCE_S)
        assert shared.pool.lent == 0
        shared.check()


def test_a_dead_process_whose_child_keeps_the_socket_is_dead() -> None:
    program = (
        PRELUDE
        + """
b = queue.poll()
pid = os.fork()
if pid == 0:
    time.sleep(100)
print(pid, flush=True)
time.sleep(100)
"""
    )
    with SharedPool(pages=512) as shared, process(shared, program) as child:
        assert line_of(child) == "attached"
        the_consumer(shared)
        shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        grandchild = int(line_of(child))
        try:
            child.kill()
            assert shared.wait_until_gone(PATIENCE_S)
            assert shared.pool.lent == 0
        finally:
            os.kill(grandchild, signal.SIGKILL)


# -- one that never gives back ---------------------------------------------------------------------------------------

HOARD = (
    PRELUDE
    + """
kept = []
for batch in queue.poll_forever():
    kept += batch.keep()
    print(len(kept), flush=True)
"""
)

WRITING_HOARD = HOARD.replace("attach(sock)", "attach(sock, writable=True)").replace(
    "for batch in queue.poll_forever():", "for batch in patient(queue):"
)
WRITING_HOARD = (
    """
def patient(queue):
    try:
        yield from queue.poll_forever()
    except Exception:
        pass
    time.sleep(100)  # revoked, and it goes on
"""
    + WRITING_HOARD
)


def hoard(child: subprocess.Popen[str], shared: SharedPool, count: int) -> None:
    assert line_of(child) == "attached"
    the_consumer(shared)
    assert shared.send(np.array(shared.pool.alloc_bulk(count), np.uint32)) == count
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    assert line_of(child) == str(count)


def test_one_that_never_gives_back_is_seen() -> None:
    with SharedPool(pages=512) as shared, process(shared, HOARD) as child:
        hoard(child, shared, 30)
        time.sleep(0.02)
        (holder,) = shared.holders()
        assert (holder.pid, holder.uid, holder.count) == (child.pid, os.getuid(), 30)
        assert holder.name.startswith("python")
        assert holder.oldest_s > 0.01
        assert len(set(holder.ids)) == 30
        assert "30 pages with python" in str(holder)
        assert not holder.writable
        assert shared.pool.lent == 30


def test_a_reader_that_is_revoked_has_nothing_any_more() -> None:
    with SharedPool(pages=512) as shared, process(shared, HOARD) as child:
        hoard(child, shared, 30)
        consumer = shared.consumers[0]
        assert consumer.revoke() == 0
        assert (shared.pool.lent, shared.consumers, shared.holders()) == (0, (), [])
        assert child.wait(PATIENCE_S) == 1  # its poll raises RevokedError
        assert shared.stats().lost == 30
        assert consumer.revoke() == 0
        shared.check()


def test_a_writer_that_is_revoked_is_in_quarantine_until_it_ends() -> None:
    program = WRITING_HOARD
    with SharedPool(pages=512, writable=True) as shared, process(shared, program) as child:
        hoard(child, shared, 30)
        consumer = shared.consumers[0]
        assert consumer.revoke() == 30
        assert consumer.state is ConsumerState.QUARANTINED
        (holder,) = shared.holders()
        assert (holder.count, holder.state) == (30, "quarantined")
        assert shared.stats().quarantined == 30
        assert shared.pool.lent == 30
        assert shared.send(np.array(shared.pool.alloc_bulk(1), np.uint32)) == 0
        shared.check()
        child.kill()
        assert shared.wait_until_gone(PATIENCE_S)
        assert shared.pool.lent == 1
        shared.check()


@pytest.mark.parametrize("stopped", [False, True])
def test_revoked_and_killed(stopped: bool) -> None:
    program = WRITING_HOARD
    with SharedPool(pages=512, writable=True) as shared, process(shared, program) as child:
        hoard(child, shared, 30)
        if stopped:
            child.send_signal(signal.SIGSTOP)
        shared.consumers[0].revoke(kill=True)
        assert shared.wait_until_gone(PATIENCE_S)
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
        assert shared.pool.lent == 0
        shared.check()


def test_closed_with_pages_in_quarantine_they_come_home_later() -> None:
    program = WRITING_HOARD
    allocator = pp.PageAllocator(2 << 20, "memfd", commit=True)
    with pp.PagePool(memory=allocator, zero=True) as pool:
        shared = SharedPool(pool, writable=True)
        with process(shared, program) as child:
            hoard(child, shared, 30)
            (holder,) = shared.close(0.01)
            assert (holder.count, holder.state) == (30, "quarantined")
            assert pool.lent == 30
            child.kill()
            eventually(lambda: pool.lent == 0)
        assert shared.service.join(PATIENCE_S)
        shared.check()


# -- fork ------------------------------------------------------------------------------------------------------------


def in_a_child(work) -> bytes:  # type: ignore[no-untyped-def]
    """Fork, run `work` there, return what it returned; an exception in the child is returned as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = work()
        except BaseException as error:
            text = repr(error).encode()
        os.write(write, text)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_a_forked_child_of_the_lender_lends_nothing() -> None:
    with SharedPool(pages=512) as shared, pp.attach(shared.connect()) as queue:
        consumer = the_consumer(shared)
        page = shared.pool.alloc_pages()
        assert b"closed" in in_a_child(lambda: (shared.send(page), b"sent")[1])
        assert in_a_child(lambda: str(shared.close()).encode()) == b"[]"
        assert shared.send(page) == 1
        with next(queue.poll_forever(timeout=PATIENCE_S)) as batch:
            assert len(batch) == 1
        eventually(lambda: shared.pool.lent == 0)
        assert consumer.state is ConsumerState.ATTACHED
        shared.check()


def test_a_forked_child_of_a_consumer_gives_nothing_back() -> None:
    with SharedPool(pages=512) as shared, pp.attach(shared.connect()) as queue:
        consumer = the_consumer(shared)
        page = shared.pool.alloc_pages()
        page[:5] = b"hello"
        shared.send(page, 5)
        batch = next(queue.poll_forever(timeout=PATIENCE_S))
        (kept,) = batch.keep()

        def child() -> bytes:
            text = bytes(kept)
            kept.put()
            batch.complete()
            queue.close()
            return text

        assert in_a_child(child) == b"hello"  # it can still read
        assert consumer.link.reap() == 0
        assert shared.pool.lent == 1
        assert "closed" in repr(in_a_child(lambda: repr(queue.poll()).encode()))
        assert consumer.state is ConsumerState.ATTACHED
        kept.put()
        batch.complete()
        eventually(lambda: shared.pool.lent == 0)
        assert consumer.stats().bad_returns == 0


NOBODY = 65534


def as_nobody(shared: SharedPool) -> bytes:
    """Attach as another user, in a forked child, and say what came of it."""
    theirs = shared.connect()

    def work() -> bytes:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pp.attach(theirs) as queue:
            batch = next(queue.poll_forever(timeout=PATIENCE_S))
            return bytes(batch.frame(0))

    said: list[bytes] = []
    thread = threading.Thread(target=lambda: said.append(in_a_child(work)))
    thread.start()
    if shared.wait_for_consumers(1, 1.0):
        page = shared.pool.alloc_pages()
        page[:5] = b"hello"
        shared.send(page, 5)
    thread.join()
    theirs.close()
    return said[0]


@pytest.mark.needs_root
def test_another_user_is_served_only_if_that_was_said() -> None:
    with SharedPool(pages=512) as shared:
        assert b"uid 65534 is not served here" in as_nobody(shared)
        assert shared.stats().refused == 1
    with SharedPool(pages=512, uids=[NOBODY]) as shared:
        assert as_nobody(shared) == b"hello"
        assert shared.wait_until_gone(PATIENCE_S)
        assert shared.pool.lent == 0


# -- the lender ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_the_lender_ends_and_the_consumer_is_told(how: str) -> None:
    program = """
        import sys, time, os
        from pagepool import SharedPool
        sock = None
        shared = SharedPool(pages=512, path=sys.argv[1])
        print("ready", flush=True)
        shared.wait_for_consumers(1)
        page = shared.pool.alloc_pages()
        page[:7] = b"forever"
        shared.send(page, 7)
        if sys.argv[2] == "closed":
            sys.stdin.readline()
            shared.close(0)
        time.sleep(100)
    """
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/sock"
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program), path, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as lender:
            try:
                assert line_of(lender) == "ready"
                with pp.attach(path) as queue:
                    with next(queue.poll_forever(timeout=PATIENCE_S)) as batch:
                        (page,) = batch.keep()
                    if how == "killed":
                        lender.kill()
                    else:
                        assert lender.stdin is not None
                        lender.stdin.write("go\n")
                        lender.stdin.flush()
                    assert queue.wait_until_revoked(PATIENCE_S)
                    assert bytes(page) == b"forever"  # its memory stays
                    if how == "killed":
                        assert list(queue.poll_forever(timeout=PATIENCE_S)) == []
                        assert queue.is_finished
                    assert queue.is_revoked == (how == "closed")
                    page.put()
            finally:
                lender.kill()


def test_a_stranger_that_hangs_up_with_pages_alive_is_as_good_as_dead() -> None:
    with SharedPool(pages=512) as shared:
        stranger = Stranger(shared)
        consumer = shared.consumers[0]
        shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
        stranger.close()
        assert shared.wait_until_gone(PATIENCE_S)
        assert consumer.stats().recalled == 10
        assert shared.pool.lent == 0
        shared.check()

# SPDX-License-Identifier: MIT
"""Whatever a consumer writes is refused and counted, never followed."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_doubles import (
    AT_GIVEN,
    AT_SENT,
    AT_TAKEN,
    PATIENCE_S,
    WORDS_BYTES,
    Stranger,
    eventually,
    line_of,
    process,
)

import pagepool as pp
from pagepool.shared import Consumer, SharedPool


@contextmanager
def lent_to_a_stranger(count: int = 10) -> Iterator[tuple[SharedPool, Stranger, list[int]]]:
    with SharedPool(pages=512, max_pages=64) as shared, Stranger(shared) as stranger:
        ids = np.array(shared.pool.alloc_bulk(count), np.uint32)
        assert shared.send(ids, 60) == count
        yield shared, stranger, ids.tolist()
        shared.check()


def test_a_page_given_back_twice() -> None:
    with lent_to_a_stranger() as (shared, stranger, ids):
        stranger.give(ids[0], ids[0], ids[1], ids[0])
        eventually(lambda: shared.pool.lent == 8)
        assert shared.consumers[0].stats().bad_returns == 2
        assert shared.pool.stats().rejected == 0  # it never came so far


def test_an_id_out_of_range() -> None:
    with lent_to_a_stranger() as (shared, stranger, ids):
        stranger.give(512, 0xFFFFFFFF, 0x80000000, ids[3])
        eventually(lambda: shared.pool.lent == 9)
        assert shared.consumers[0].stats().bad_ids == 3


def test_someone_elses_page() -> None:
    with lent_to_a_stranger() as (shared, stranger, ids):
        mine = shared.pool.alloc_pages()
        with pp.attach(shared.connect()) as other:
            assert shared.wait_for_consumers(2, PATIENCE_S)
            theirs = np.array(shared.pool.alloc_bulk(1), np.uint32)
            shared.consumers[1].send(theirs)
            stranger.give(mine.id, int(theirs[0]), ids[0])
            eventually(lambda: shared.pool.lent == 11)
            assert shared.consumers[0].stats().bad_returns == 2
            assert mine.is_live
            assert shared.consumers[1].link.outstanding == 1
            assert len(next(other.poll_forever(timeout=PATIENCE_S))) == 1
        mine.put()


def test_a_page_that_was_never_taken_may_be_given_back() -> None:
    """Its descriptor may then be written over: that is the stranger's loss alone."""
    with lent_to_a_stranger() as (shared, stranger, ids):
        for _ in range(50):
            stranger.give(*ids)
            eventually(lambda: shared.pool.lent == 0)
            ids = shared.pool.alloc_bulk(10).tolist()
            assert shared.send(np.array(ids, np.uint32), 60) == 10
        assert stranger.word(AT_TAKEN) == 0
        assert stranger.word(AT_SENT) == 510


@pytest.mark.parametrize("jump", [65, 1000, 1 << 31, -1, -64])
def test_an_index_that_jumps(jump: int) -> None:
    with lent_to_a_stranger() as (shared, stranger, ids):
        consumer = shared.consumers[0]
        given = stranger.word(AT_GIVEN)
        stranger.set_word(AT_GIVEN, given + jump)
        for _ in range(3):
            assert consumer.link.reap() == 0
        assert consumer.stats().bad_indexes >= 3
        assert shared.pool.lent == 10
        stranger.set_word(AT_GIVEN, given)
        stranger.give(*ids)  # it has come to its senses
        eventually(lambda: shared.pool.lent == 0)


def test_the_index_of_taken_descriptors_is_only_a_figure() -> None:
    with lent_to_a_stranger() as (shared, stranger, _):
        for value in (0, 5, 11, 0xFFFFFFFF, 0x7FFFFFFF):
            stranger.set_word(AT_TAKEN, value)
            assert 0 <= shared.consumers[0].stats().backlog <= 15
            ids = np.array(shared.pool.alloc_bulk(1), np.uint32)
            assert shared.send(ids, 60) == 1


def test_it_rings_and_rings() -> None:
    with lent_to_a_stranger() as (shared, stranger, ids):
        stranger.sock.setblocking(False)
        for _ in range(20_000):
            try:
                stranger.sock.send(b"x")
            except BlockingIOError:
                pass
        with pp.attach(shared.connect()):
            assert shared.wait_for_consumers(2, PATIENCE_S)  # others are served
        stranger.give(*ids)
        eventually(lambda: shared.pool.lent == 0)


def test_it_rings_faster_than_anybody_reads() -> None:
    """Some bells are read, then the others are served: who read on until there were none might never end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nobody: Any = None
    with ours, theirs:
        for _ in range(150):
            theirs.send(b"x")
        assert Consumer(nobody, ours, nobody, nobody, writable=False).drain_bells()
        assert ours.recv(64, socket.MSG_DONTWAIT) == b"x"


def test_what_was_revoked_stays_revoked() -> None:
    with lent_to_a_stranger() as (shared, stranger, _):
        link = shared.consumers[0].link
        link.stop(2)
        link.stop(1)
        assert stranger.word(128) == 2


def test_a_process_may_call_itself_what_it_likes() -> None:
    rude = r"""
        open("/proc/self/comm", "wb").write(b"\x1b[2J\n\xff")
        import pagepool
        queue = pagepool.attach(sock)
        print("ready", flush=True)
        time.sleep(100)
    """
    with SharedPool(pages=512, max_pages=64) as shared, process(shared, rude) as child:
        assert line_of(child) == "ready"
        (name,) = shared.stats().consumers
        assert name.startswith("?[2J?\ufffd (pid ")
        assert name.isprintable()


def test_it_does_not_read_its_bells() -> None:
    """The lender never waits for a consumer, however full its socket is."""
    with lent_to_a_stranger() as (shared, stranger, ids):
        for _ in range(2000):
            stranger.set_word(512, 1)  # ring me
            stranger.give(*ids)
            shared.reap()
            ids = shared.pool.alloc_bulk(10).tolist()
            assert shared.send(np.array(ids, np.uint32), 60) == 10
        assert shared.consumers[0].stats().bells > 500


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_arbitrary_bytes_anywhere_in_the_rings(data: st.DataObject) -> None:
    """Whatever is written, every page is where the books say, and comes home when the stranger is gone."""
    with lent_to_a_stranger(0) as (shared, stranger, _):
        consumer = shared.consumers[0]
        words = st.sampled_from([0, 128, 256, 384, 512, 640, 768, 896, WORDS_BYTES])
        for _ in range(data.draw(st.integers(1, 12))):
            what = data.draw(st.sampled_from(["send", "word", "bytes", "give", "reap"]))
            if what == "send":
                ids = np.array(shared.pool.alloc_bulk(data.draw(st.integers(1, 30))), np.uint32)
                done = shared.send(ids, 60)
                assert 0 <= done <= len(ids)
                assert shared.pool.put_bulk(ids[done:]) == len(ids) - done
            elif what == "word":
                stranger.set_word(data.draw(words), data.draw(st.integers(0, 0xFFFFFFFF)))
            elif what == "bytes":
                at = data.draw(st.integers(0, len(stranger.rings) - 64))
                stranger.rings[at : at + 64] = data.draw(st.binary(min_size=64, max_size=64))
            elif what == "give":
                stranger.give(*data.draw(st.lists(st.integers(0, 600), max_size=20)))
            else:
                shared.reap()
            shared.check()
            assert shared.pool.lent == consumer.link.outstanding == len(consumer.link.held_ids())
        stranger.close()
        assert shared.wait_until_gone(PATIENCE_S)
        assert shared.pool.lent == 0


def test_noise_from_a_thread_while_frames_go() -> None:
    with SharedPool(pages=512, max_pages=64) as shared, Stranger(shared) as stranger:
        chance, stop = random.Random(1), threading.Event()

        def scribble() -> None:
            while not stop.is_set():
                at = chance.randrange(0, len(stranger.rings) - 4)
                stranger.rings[at : at + 4] = chance.randbytes(4)
                if chance.random() < 0.3:
                    stranger.give(*(chance.randrange(520) for _ in range(8)))

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for _ in range(3000):
                ids = np.array(shared.pool.alloc_bulk(4), np.uint32)
                done = shared.send(ids, 60)
                shared.pool.put_bulk(ids[done:])
        finally:
            stop.set()
            thread.join()
        shared.check()
        stranger.close()
        assert shared.wait_until_gone(PATIENCE_S)
        assert shared.pool.lent == 0

# SPDX-License-Identifier: MIT
"""Whatever the other side writes is refused and counted, never followed: consumers that lie, lenders that lie."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_doubles import (
    AT_GIVEN,
    AT_SENT,
    AT_TAKEN,
    DESC_BYTES,
    PATIENCE_S,
    WORDS_BYTES,
    FakeLender,
    Stranger,
    eventually,
    line_of,
    process,
)

import pagepool as pp
from pagepool._core.mapped_range import MappedRange
from pagepool.errors import DeviceError, PagePoolError
from pagepool.shared import AttachedQueue, HandshakeError, SharedPool, SharedRingError
from pagepool.shared._borrower import Borrower
from pagepool.shared._lender import size_of_rings
from pagepool.shared.mapping import make_rings_file
from pagepool.shared.wire import ACCEPTED, Hello, Ready, Welcome

# -- consumers that lie ----------------------------------------------------------------------------------------------


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


def test_several_ring_faster_than_anybody_reads() -> None:
    """The others are served all the same."""
    flood = """
        from pagepool.shared.wire import Hello, Ready, check_accepted, receive_welcome
        sock.send(Hello(False).pack())
        welcome, *fds = receive_welcome(sock)
        sock.send(Ready(welcome.arena_id, welcome.arena_inode).pack())
        check_accepted(sock.recv(512))
        for _ in range(3):
            if os.fork() == 0:
                while True:
                    sock.send(b"x")
        print("ready", flush=True)
        time.sleep(100)
    """
    with SharedPool(pages=512, max_pages=64) as shared, process(shared, flood) as child:
        assert line_of(child) == "ready"
        for _ in range(3):
            with pp.attach(shared.connect(), timeout=PATIENCE_S) as queue:
                assert shared.wait_for_consumers(2, PATIENCE_S)
                ids = np.array(shared.pool.alloc_bulk(10), np.uint32)
                assert shared.consumers[1].send(ids) == 10
                next(queue.poll_forever(timeout=PATIENCE_S)).complete()
                eventually(lambda: shared.pool.lent == 0)
            eventually(lambda: len(shared.consumers) == 1)
        shared.consumers[0].revoke()


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


# -- the handshake ---------------------------------------------------------------------------------------------------


def talk(shared: SharedPool, *messages: bytes) -> bytes:
    """Say something at the door, and return the last answer."""
    with shared.connect() as sock:
        sock.settimeout(PATIENCE_S)
        answer = b""
        for message in messages:
            sock.send(message)
            answer, fds, _, _ = socket.recv_fds(sock, 512, 4)
            for fd in fds:
                os.close(fd)
        return answer


HELLO = Hello(False).pack()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"x", b"truncated"),
        (HELLO[:15], b"truncated"),
        (HELLO[:-1], b"HELO"),
        (HELLO + b"x", b"HELO"),
        (b"GET / HTTP/1.1\r\n\r\n", b"magic"),
        (HELLO[:12] + b"\x63\0\0\0" + HELLO[16:], b"version 99"),
        (HELLO[:16] + b"\xff\0\0\0" + HELLO[20:], b"unknown wishes"),
        (Ready(bytes(16), 0).pack(), b"REDY"),
        (Hello(True).pack(), b"reading only"),
        (Hello(False, b"another arena!!!").pack(), b"another arena"),
        (bytes(512), b"magic"),
    ],
)
def test_a_hello_that_is_none(message: bytes, why: bytes) -> None:
    with SharedPool(pages=512) as shared:
        assert why in talk(shared, message)
        assert (shared.stats().refused, shared.stats().attached) == (1, 0)
        assert shared.lender.nr_links == 0


@pytest.mark.parametrize(
    "ready", [Ready(bytes(16), 0), Ready(b"another arena!!!", 1), None], ids=["zeros", "another", "hello again"]
)
def test_a_ready_for_another_arena(ready: Ready | None) -> None:
    with SharedPool(pages=512) as shared:
        answer = talk(shared, HELLO, HELLO if ready is None else ready.pack())
        assert b"REFU" in answer
        eventually(lambda: shared.lender.nr_links == 0)
        assert shared.consumers == ()


def test_descriptors_that_a_visitor_brings_are_closed() -> None:
    with SharedPool(pages=512) as shared:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with shared.connect() as sock, open("/dev/null") as null:
                socket.send_fds(sock, [b"here, take this"], [null.fileno()] * 8)
                sock.settimeout(PATIENCE_S)
                assert b"REFU" in sock.recv(512)
        eventually(lambda: not shared.service.nr_visitors)
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("said", [b"", HELLO], ids=["nothing", "only hello"])
def test_a_visitor_that_does_not_go_on_is_sent_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes
) -> None:
    monkeypatch.setattr("pagepool.shared.reception.HANDSHAKE_S", 0.05)
    with SharedPool(pages=512, path=tmp_path / "sock") as shared:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(tmp_path / "sock"))
            if said:
                sock.send(said)
                sock.recv(512)
            assert b"took too long" in sock.recv(512)
            assert sock.recv(512) == b""
        assert shared.lender.nr_links == 0


def test_a_crowd_at_the_door() -> None:
    """More than are heard at once: the rest is turned away at once."""
    with SharedPool(pages=512) as shared:
        crowd = [shared.connect() for _ in range(100)]
        for sock in crowd:
            sock.close()
        eventually(lambda: not shared.service.nr_visitors)
        with pp.attach(shared.connect()):
            pass


def test_more_consumers_than_there_is_room_for() -> None:
    with SharedPool(pages=512, max_pages=2) as shared:
        queues = [pp.attach(shared.connect()) for _ in range(64)]
        with pytest.raises(HandshakeError, match="64 borrowers"):
            pp.attach(shared.connect())
        for queue in queues:
            queue.close()
        assert shared.wait_until_gone(PATIENCE_S)


# -- lenders that lie ------------------------------------------------------------------------------------------------

ARENA_BYTES = 2 << 20
SLOTS = 16
RINGS_BYTES = size_of_rings(SLOTS)


def memory_file(size_bytes: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def good_welcome(arena: int) -> Welcome:
    return Welcome(False, b"the arena's name", ARENA_BYTES, os.fstat(arena).st_ino, RINGS_BYTES, SLOTS, 0)


def ring_words(fd: int, *, magic: int = 0x47525050, version: int = 1, slots: int = SLOTS) -> None:
    os.pwrite(fd, b"".join(word.to_bytes(4, "little") for word in (magic, version, slots)), 0)


def attach_to(answer: Callable[[FakeLender], None]) -> AttachedQueue:
    lender = FakeLender()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            lender.hello()
            answer(lender)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        return pp.attach(lender.theirs, timeout=1.0)
    finally:
        thread.join()
        lender.close()
        assert failed == []


@contextmanager
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer, where the thread of an earlier test has just ended


LIES: dict[str, tuple[Callable[[Welcome], Welcome | bytes], str]] = {
    "garbage": (lambda w: b"garbage", "truncated"),
    "truncated": (lambda w: w.pack()[:-4], "WELC"),
    "longer": (lambda w: w.pack() + b"x", "WELC"),
    "empty": (lambda w: b"\0", "truncated"),
    "another protocol": (lambda w: bytes(60), "magic"),
    "arena too small": (lambda w: Welcome(False, w.arena_id, 4096, w.arena_inode, w.rings_bytes, w.slots, 0), "bytes"),
    "arena too large": (lambda w: Welcome(False, w.arena_id, 1 << 60, w.arena_inode, w.rings_bytes, w.slots, 0), "be"),
    "no arena": (lambda w: Welcome(False, w.arena_id, 0, w.arena_inode, w.rings_bytes, w.slots, 0), "cannot be"),
    "order": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, w.arena_inode, w.rings_bytes, w.slots, 10), "order"),
    "inode": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, 1, w.rings_bytes, w.slots, 0), "another file"),
    "slots": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, w.arena_inode, w.rings_bytes, 15, 0), "power of two"),
    "more slots": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, w.arena_inode, 4096, 32, 0), "32 entries"),
    "all slots": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, w.arena_inode, 4096, 1 << 31, 0), "power of two"),
    "no slots": (lambda w: Welcome(False, w.arena_id, w.arena_bytes, w.arena_inode, 4096, 0, 0), "power of two"),
    "less than a page": (lambda w: Welcome(False, w.arena_id, 4096, w.arena_inode, w.rings_bytes, 16, 5), "cannot be"),
    "for writing": (lambda w: Welcome(True, w.arena_id, w.arena_bytes, w.arena_inode, w.rings_bytes, 16, 0), "writing"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_welcome_that_cannot_be(lie: str) -> None:
    change, why = LIES[lie]
    with no_descriptor_is_left():
        arena, rings = memory_file(ARENA_BYTES), memory_file(RINGS_BYTES)
        ring_words(rings)
        try:
            with pytest.raises((HandshakeError, DeviceError), match=why):
                attach_to(lambda lender: lender.welcome(change(good_welcome(arena)), [arena, rings]))
        finally:
            os.close(arena)
            os.close(rings)


def test_a_file_of_holes_is_not_filled() -> None:
    """It may say that it is as large as all memory; to read a hole allocates it."""
    arena, rings = os.memfd_create("holes", os.MFD_ALLOW_SEALING), memory_file(RINGS_BYTES)
    os.ftruncate(arena, 1 << 30)
    fcntl.fcntl(arena, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    ring_words(rings)

    def answer(lender: FakeLender) -> None:
        inode = os.fstat(arena).st_ino
        lender.welcome(Welcome(False, bytes(16), 1 << 30, inode, RINGS_BYTES, SLOTS, 0), [arena, rings])
        Ready.unpack(lender.sock.recv(512))
        lender.sock.send(ACCEPTED)

    try:
        with attach_to(answer) as queue:
            assert queue.pool.arena.size_bytes == 1 << 30
            assert os.fstat(arena).st_blocks == 0
    finally:
        os.close(arena)
        os.close(rings)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_a_welcome_with_the_wrong_number_of_descriptors(count: int) -> None:
    with no_descriptor_is_left():
        arena = memory_file(ARENA_BYTES)
        try:
            with pytest.raises(HandshakeError, match=f"{count} descriptors"):
                attach_to(lambda lender: lender.welcome(good_welcome(arena), [arena] * count))
        finally:
            os.close(arena)


@pytest.mark.parametrize("which", ["pipe", "null", "file", "unsealed", "short rings", "swapped"])
def test_a_welcome_with_the_wrong_descriptors(which: str, tmp_path: Path) -> None:
    arena, rings, other = memory_file(ARENA_BYTES), memory_file(RINGS_BYTES), -1
    ring_words(rings)
    welcome, fds = good_welcome(arena), [arena, rings]
    if which == "pipe":
        other, unused = os.pipe()
        os.close(unused)
        fds = [arena, other]
    elif which == "null":
        other = os.open("/dev/null", os.O_RDWR)
        fds = [arena, other]
    elif which == "file":
        other = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(other, ARENA_BYTES)
        welcome = Welcome(False, b"x" * 16, ARENA_BYTES, os.fstat(other).st_ino, RINGS_BYTES, SLOTS, 0)
        fds = [other, rings]
    elif which == "unsealed":
        other = memory_file(ARENA_BYTES, 0)
        welcome = Welcome(False, b"x" * 16, ARENA_BYTES, os.fstat(other).st_ino, RINGS_BYTES, SLOTS, 0)
        fds = [other, rings]
    elif which == "short rings":
        other = memory_file(4096)
        fds = [arena, other]
    else:
        fds = [rings, arena]
    try:
        with pytest.raises((HandshakeError, DeviceError)):
            attach_to(lambda lender: lender.welcome(welcome, fds))
    finally:
        for fd in (arena, rings, other):
            if fd >= 0:
                os.close(fd)


@pytest.mark.parametrize(
    ("words", "why"),
    [({"magic": 0}, "magic"), ({"version": 2}, "version 2"), ({"slots": 1 << 20}, "do not fit"), ({"slots": 3}, "3")],
)
def test_rings_that_are_none(words: dict[str, int], why: str) -> None:
    arena, rings = memory_file(ARENA_BYTES), memory_file(RINGS_BYTES)
    ring_words(rings, **words)

    def answer(lender: FakeLender) -> None:
        lender.welcome(good_welcome(arena), [arena, rings])
        lender.sock.recv(512)
        lender.sock.send(ACCEPTED)

    try:
        with pytest.raises(HandshakeError, match=why):
            attach_to(answer)
    finally:
        os.close(arena)
        os.close(rings)


def test_nobody_answers() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, pytest.raises(TimeoutError):
        pp.attach(theirs, timeout=0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with pytest.raises((HandshakeError, OSError)):
        pp.attach(theirs, timeout=1)


class Liar:
    """The lender's side of rings, written by hand, and a borrower on them."""

    def __init__(self, order: int = 0) -> None:
        self.fd = make_rings_file(RINGS_BYTES)
        ring_words(self.fd)
        self.rings = mmap.mmap(self.fd, RINGS_BYTES)
        os.close(self.fd)
        self.arena = mmap.mmap(-1, ARENA_BYTES)
        self._held = [ctypes.c_char.from_buffer(memory) for memory in (self.arena, self.rings)]
        vaddrs = [ctypes.addressof(one) for one in self._held]
        self.borrower = Borrower(
            vaddrs[0], ARENA_BYTES, order, False, vaddrs[1], RINGS_BYTES, -1, (*self._held, self.arena)
        )
        self.sent = 0

    def write(self, page_id: int, offset: int = 0, length: int = 60) -> None:
        at = WORDS_BYTES + self.sent % SLOTS * DESC_BYTES
        self.rings[at : at + 12] = b"".join(
            (word & 0xFFFFFFFF).to_bytes(4, "little") for word in (page_id, offset, length)
        )
        self.sent += 1
        self.publish(self.sent)

    def publish(self, sent: int) -> None:
        self.rings[AT_SENT : AT_SENT + 4] = (sent & 0xFFFFFFFF).to_bytes(4, "little")

    def take(self, budget: int = 64) -> list[tuple[int, int, int]]:
        block = np.empty((6, budget), np.uint32)
        n = self.borrower.take(block, budget)
        if self.borrower.offset >= 0:
            block[2, :n] = self.borrower.offset
        return [(page_id, offset, length) for page_id, length, offset in block[:3, :n].T.tolist()]


@pytest.mark.parametrize(
    ("page_id", "offset", "length"),
    [
        (512, 0, 60),
        (0xFFFFFFFF, 0, 60),
        (0x80000000, 0, 0),
        (3, 4096, 1),
        (3, 0, 4097),
        (3, 1, 4096),
        (3, 0xFFFFFFFF, 1),
        (3, 1, 0xFFFFFFFF),
        (3, 0xFFFFF000, 0x1000),
    ],
)
def test_a_descriptor_of_nothing(page_id: int, offset: int, length: int) -> None:
    liar = Liar()
    liar.write(1)
    liar.write(page_id, offset, length)
    liar.write(2)
    assert liar.take() == [(1, 0, 60), (2, 0, 60)]
    assert liar.borrower.bad_descriptors == 1
    assert liar.borrower.lent == 2


def test_a_page_of_a_higher_order_must_be_aligned_and_inside() -> None:
    liar = Liar(order=2)
    for page_id in (0, 1, 2, 3, 4, 508, 509, 511, 512):
        liar.write(page_id, 0, 16384)
    assert [taken[0] for taken in liar.take()] == [0, 4, 508]
    assert liar.borrower.bad_descriptors == 6


@pytest.mark.parametrize("sent", [SLOTS + 1, 1 << 31, -1, -5])
def test_a_lenders_index_that_jumps(sent: int) -> None:
    liar = Liar()
    liar.publish(sent)
    for _ in range(3):
        with pytest.raises(SharedRingError, match="index"):
            liar.take()
    assert liar.borrower.bad_indexes == 3
    liar.borrower.close()


def test_a_page_lent_twice_is_given_back_twice() -> None:
    liar = Liar()
    liar.write(7)
    liar.write(7)
    assert [taken[0] for taken in liar.take()] == [7, 7]
    assert liar.borrower.put_bulk(np.array([7, 7, 7], np.uint32)) == 2
    assert liar.borrower.rejected == 1


def test_a_lender_that_lends_more_than_the_ring_holds_hurts_itself() -> None:
    liar = Liar()
    for number in range(5000):
        liar.write(number % 512)
        assert len(liar.take()) == 1
    assert liar.borrower.lent == 5000
    for _ in range(10):
        liar.borrower.put_bulk(np.arange(512, dtype=np.uint32))
    assert liar.borrower.lent == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arbitrary_bytes_from_a_lender(data: st.DataObject) -> None:
    """Nothing that comes out of the rings lies outside the arena, and nothing is given back that was not taken."""
    liar = Liar(order=data.draw(st.integers(0, 9)))
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 10))):
        what = data.draw(st.sampled_from(["bytes", "index", "take", "give", "desc"]))
        if what == "bytes":
            at = data.draw(st.integers(128, RINGS_BYTES - 64))
            liar.rings[at : at + 64] = data.draw(st.binary(min_size=64, max_size=64))
        elif what == "index":
            liar.sent = liar.sent + data.draw(st.integers(0, 20))
            liar.publish(liar.sent)
        elif what == "desc":
            number = st.one_of(st.integers(0, 600), st.integers(0, 0xFFFFFFFF))
            liar.write(data.draw(number), data.draw(number), data.draw(number))
        elif what == "take":
            try:
                frames = liar.take(data.draw(st.integers(1, 20)))
            except SharedRingError:
                liar.publish(0)
                continue
            for page_id, offset, length in frames:
                assert (page_id << 12) + offset + length <= ARENA_BYTES
                taken.append(page_id)
        else:
            ids = data.draw(st.lists(st.integers(0, 600), max_size=10))
            done = liar.borrower.put_bulk(np.array(ids, np.uint32))
            for page_id in ids:
                if page_id in taken:
                    taken.remove(page_id)
                    done -= 1
            assert done == 0
        assert liar.borrower.lent == len(taken)
    liar.borrower.close()


def test_no_rings_where_there_is_no_memory() -> None:
    with pytest.raises(SharedRingError):
        Borrower(4096, 4096, 0, False, 0, 0)
    assert MappedRange(0, 0).size_bytes == 0


# -- what a reader can do with its descriptor ------------------------------------------------------------------------

PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def test_a_reader_cannot_map_the_arena_for_writing() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with SharedPool(pages=512) as shared, Stranger(shared) as stranger:
        fd, size = stranger.arena_fd, stranger.welcome.arena_bytes
        with pytest.raises(PermissionError):
            mmap.mmap(fd, size, prot=PROT_READ_WRITE)
        # Not by changing the mapping ...
        readable = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        vaddr = np.frombuffer(readable, np.uint8).ctypes.data
        assert libc.mprotect(vaddr, 4096, PROT_READ_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES
        # ... nor by opening the file anew, which root and the owner may: the seal holds for them too.
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, size, prot=PROT_READ_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(again, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 0)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 2 * size)
            with pytest.raises(PermissionError):
                fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            punch = libc.fallocate
            punch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            assert punch(again, 0x03, 0, 4096) == -1  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            assert ctypes.get_errno() == errno.EPERM
        finally:
            os.close(again)
        private = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=PROT_READ_WRITE)
        private[0:5] = b"alone"  # a copy of its own is its own
        assert bytes(shared.allocator.view()[:5]) == bytes(5)
        private.close()


def test_a_reader_beside_a_writer_has_a_descriptor_for_reading() -> None:
    with SharedPool(pages=512, writable=True) as shared, Stranger(shared) as stranger:
        with pytest.raises(PermissionError):
            mmap.mmap(stranger.arena_fd, stranger.welcome.arena_bytes, prot=PROT_READ_WRITE)
        with pytest.raises(OSError, match="descriptor"):
            os.write(stranger.arena_fd, b"x")


def test_a_writer_can_neither_cut_nor_seal_the_arena() -> None:
    with SharedPool(pages=512, writable=True) as shared, Stranger(shared, writable=True) as stranger:
        for size in (0, 4096, 64 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(stranger.arena_fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(stranger.arena_fd, fcntl.F_ADD_SEALS, 0x10)
        with pytest.raises(PermissionError):
            os.ftruncate(stranger.rings_fd, 0)


# -- what a reader can see -------------------------------------------------------------------------------------------


def test_nothing_of_another_pool_can_be_read() -> None:
    """The whole mapping, lent pages or not, is zeros and what this pool's user wrote."""
    secret = b"a secret of another pool" * 100
    with pp.PagePool() as other:
        keep = [other.alloc_pages() for _ in range(100)]
        for page in keep:
            page[: len(secret)] = secret
        with SharedPool(pages=1024) as shared, Stranger(shared) as stranger:
            assert not np.frombuffer(stranger.arena, np.uint8).any()  # all of it, before anything was lent
            page = shared.pool.alloc_pages()
            page[:4] = b"mine"
            shared.send(page, 4)
            assert stranger.arena[:].strip(b"\0") == b"mine"
            stranger.give(page.id)
            eventually(lambda: shared.pool.lent == 0)
        del page
        for page in keep:
            page.put()


def test_no_other_pool_can_come_to_a_shared_arena() -> None:
    allocator = pp.PageAllocator(2 << 20, "memfd", commit=True)
    with pp.PagePool(memory=allocator, zero=True) as pool:
        with pp.PagePool(memory=allocator, zero=True) as second, pytest.raises(ValueError, match="2 pools"):
            SharedPool(pool)
        assert second.closed
        del second
        with pytest.raises(ValueError, match="2 pools"):
            SharedPool(pool)  # its data may still lie there
    clean = pp.PageAllocator(2 << 20, "memfd", commit=True)
    pool = pp.PagePool(memory=clean, zero=True)
    with pool, SharedPool(pool), pytest.raises(PagePoolError, match="shared with other processes"):
        pp.PagePool(memory=clean)


def test_a_page_that_left_the_pool_comes_back_as_zeros_one_that_circulates_does_not() -> None:
    with SharedPool(pages=512) as shared, Stranger(shared) as stranger:
        pool = shared.pool
        ids = np.array(pool.alloc_bulk(512), np.uint32)  # all of the arena
        rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)
        rows[:, :6] = np.frombuffer(b"before", np.uint8)
        assert pool.put_bulk(ids) == 512
        page = pool.alloc_pages()
        assert bytes(page[:6]) == b"before"  # recycled: not cleared
        released = page.id
        pool.release_page(page)
        del page
        again = np.array(pool.alloc_bulk(512), np.uint32)
        assert released in again
        assert stranger.arena[released << 12 : (released + 1) << 12] == bytes(4096)
        others = [page_id for page_id in again.tolist() if page_id != released]
        assert stranger.arena[others[0] << 12 : (others[0] << 12) + 6] == b"before"
        pool.put_bulk(again)


def test_a_shared_arena_neither_shrinks_nor_grows() -> None:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    with pp.PagePool(memory=allocator, zero=True) as pool, SharedPool(pool) as shared, Stranger(shared) as stranger:
        assert allocator.shrink() == 0
        ids = pool.alloc_bulk(2000)
        assert len(ids) == 1024  # and then there is no more
        pool.put_bulk(ids)
        assert os.fstat(stranger.arena_fd).st_size == 4 << 20
        shared.check()
    small = pp.PageAllocator(2 << 20, "memfd", commit=True)
    with pp.PagePool(memory=small, zero=True) as pool, SharedPool(pool) as shared, Stranger(shared) as stranger:
        page = pool.alloc_pages()
        page[:5] = b"still"
        at = page.id << 12
        page.put()
        shared.close()
        pool.close()
        assert pool.memory.close()  # gives its memory back, as far as it is its own
        assert stranger.arena[at : at + 5] == b"still"  # what is mapped stays good until it is let go

# SPDX-License-Identifier: MIT
"""Whatever a lender offers or writes, the borrower touches nothing that it has not mapped."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_doubles import (
    AT_SENT,
    DESC_BYTES,
    WORDS_BYTES,
    FakeLender,
)

import pagepool as pp
from pagepool._core.mapped_range import MappedRange
from pagepool.errors import DeviceError
from pagepool.shared import AttachedQueue, HandshakeError, SharedPool, SharedRingError
from pagepool.shared._borrower import Borrower
from pagepool.shared._lender import size_of_rings
from pagepool.shared.mapping import FileMapping, make_rings_file
from pagepool.shared.wire import ACCEPTED, Ready, Welcome

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


def test_a_lender_that_rings_faster_than_anybody_reads(shared: SharedPool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link_rings = FileMapping(fd := make_rings_file(size_of_rings(SLOTS)), size_of_rings(SLOTS), writable=True)
    ring_words(fd)
    arena = shared.pool.arena
    borrower = Borrower(
        arena.base_vaddr,
        arena.size_bytes,
        0,
        False,
        link_rings.base_vaddr,
        link_rings.size_bytes,
        os.dup(ours.fileno()),
        link_rings.range,
    )
    with ours, theirs:
        for _ in range(150):
            theirs.send(b"x")
        assert borrower.is_connected()
        assert ours.recv(64, socket.MSG_DONTWAIT) == b"x"
    os.close(fd)

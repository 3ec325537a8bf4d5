# SPDX-License-Identifier: MIT
"""What the tests of `pagepool.shared` have in common: consumers in other processes, and a look at their rings."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pagepool import Page, SharedPool
from pagepool.shared import AttachedQueue, Consumer, SharedBatch
from pagepool.shared._lender import size_of_rings
from pagepool.shared.wire import Hello, Ready, Welcome, check_accepted, receive_welcome

PATIENCE_S = 60.0  # only of a test that fails; processes start slowly on a busy machine

# Where the words of the rings are: what a hostile process would know from reading the source.
AT_SENT, AT_TAKEN, AT_GIVEN = 256, 384, 640
WORDS_BYTES, DESC_BYTES = 4096, 32


def eventually(true: Callable[[], Any], what: str = "it never came true") -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@contextmanager
def process(shared: SharedPool, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process of its own, with ``sock`` its connection; it is killed and waited for at the end."""
    head = "import sys, os, time, signal, socket\nsock = socket.socket(fileno=int(sys.argv[1]))\n"
    theirs = shared.connect()
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(program), str(theirs.fileno()), *arguments],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    try:
        with child:
            try:
                yield child
            finally:
                if child.poll() is None:
                    child.kill()
    finally:
        child.wait(PATIENCE_S)


def line_of(child: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def the_consumer(shared: SharedPool) -> Consumer:
    """Wait for one consumer, and return it."""
    assert shared.wait_for_consumers(1, PATIENCE_S), shared.stats()
    return shared.consumers[0]


def fill(shared: SharedPool, *texts: bytes) -> list[Page]:
    """Return a page for each text, which begins with it."""
    pages = []
    for text in texts:
        page = shared.pool.alloc_pages()
        page[: len(text)] = text
        pages.append(page)
    return pages


def poll(queue: AttachedQueue, budget: int = 64) -> SharedBatch:
    """Wait for the next batch, and return it."""
    for batch in queue.poll_forever(budget, timeout=PATIENCE_S):
        return batch
    raise AssertionError("nothing came")


class Stranger:
    """A consumer that speaks the protocol by hand and writes to its rings what it likes.

    Attributes
    ----------
    arena : mmap.mmap
        Read-only, or writable if asked for.
    rings : mmap.mmap
    """

    def __init__(self, shared: SharedPool, *, writable: bool = False) -> None:
        self.sock = shared.connect()
        self.sock.settimeout(PATIENCE_S)
        self.sock.send(Hello(writable).pack())
        self.welcome, self.arena_fd, self.rings_fd = receive_welcome(self.sock)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.arena = mmap.mmap(self.arena_fd, self.welcome.arena_bytes, prot=prot)
        self.rings = mmap.mmap(self.rings_fd, self.welcome.rings_bytes)
        self.sock.send(Ready(self.welcome.arena_id, self.welcome.arena_inode).pack())
        check_accepted(self.sock.recv(512))
        assert shared.wait_for_consumers(1, PATIENCE_S)

    def word(self, at: int) -> int:
        return int.from_bytes(self.rings[at : at + 4], "little")

    def set_word(self, at: int, value: int) -> None:
        self.rings[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def descriptors(self) -> list[tuple[int, int, int]]:
        """Return (id, offset, length) of every descriptor that was ever written, the last ring full of them."""
        found = []
        for number in range(self.word(AT_SENT)):
            at = WORDS_BYTES + number % self.welcome.slots * DESC_BYTES
            found.append(tuple(int.from_bytes(self.rings[at + k : at + k + 4], "little") for k in (0, 4, 8)))
        return found  # type: ignore[return-value]

    def give(self, *ids: int) -> None:
        """Write ids into the ring of returns, whatever they are, and ring."""
        given = self.word(AT_GIVEN)
        base = WORDS_BYTES + self.welcome.slots * DESC_BYTES
        for number, page_id in enumerate(ids):
            at = base + (given + number) % self.welcome.slots * 4
            self.rings[at : at + 4] = (page_id & 0xFFFFFFFF).to_bytes(4, "little")
        self.set_word(AT_GIVEN, given + len(ids))
        try:
            self.sock.send(b"\0", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.sock.close()
        for fd in (self.arena_fd, self.rings_fd):
            if fd >= 0:
                os.close(fd)
        self.arena_fd = self.rings_fd = -1
        self.arena.close()
        self.rings.close()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeLender:
    """The other end of `pagepool.attach`, for a lender that lies; `answer` runs in a thread."""

    def __init__(self) -> None:
        self.sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)

    def hello(self) -> Hello:
        return Hello.unpack(self.sock.recv(512))

    def welcome(self, welcome: Welcome | bytes, fds: list[int]) -> None:
        message = welcome if isinstance(welcome, bytes) else welcome.pack()
        socket.send_fds(self.sock, [message], fds)

    def close(self) -> None:
        self.sock.close()


__all__ = [
    "AT_GIVEN",
    "AT_SENT",
    "AT_TAKEN",
    "DESC_BYTES",
    "PATIENCE_S",
    "WORDS_BYTES",
    "FakeLender",
    "Stranger",
    "eventually",
    "fill",
    "line_of",
    "poll",
    "process",
    "size_of_rings",
    "the_consumer",
]

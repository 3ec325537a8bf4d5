# SPDX-License-Identifier: MIT
"""How consumers come: by a path or a socket, asked who they are, refused with a reason."""

from __future__ import annotations

import gc
import os
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_doubles import PATIENCE_S, eventually, fill, line_of, poll, process, the_consumer

import pagepool as pp
from pagepool.integrations.arrow import to_arrow
from pagepool.shared import AttachedQueue, HandshakeError, SharedPool
from pagepool.shared.peer import ask_for_identity


def test_by_a_path(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with SharedPool(pages=512, path=path) as shared:
        assert path.stat().st_mode & 0o777 == 0o600
        with pp.attach(path, arena_id=shared.arena_id) as queue:
            the_consumer(shared)
            shared.send(fill(shared, b"hi")[0], 2)
            assert bytes(poll(queue).frame(0)) == b"hi"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        pp.attach(path)


def test_a_consumer_may_speak_before_it_is_asked_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first message then comes without the sender's name, and the connection has to tell."""

    accepted, spoken = threading.Event(), threading.Event()

    def late(sock: socket.socket) -> None:
        accepted.set()
        spoken.wait(PATIENCE_S)
        ask_for_identity(sock)

    class Early(socket.socket):
        def send(self, *message: Any) -> int:
            sent = super().send(*message)
            spoken.set()
            return sent

    monkeypatch.setattr("pagepool.shared.reception.ask_for_identity", late)
    with SharedPool(pages=512, path=tmp_path / "sock") as shared:
        sock = Early(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(tmp_path / "sock"))
        assert accepted.wait(PATIENCE_S)
        with pp.attach(sock):
            assert the_consumer(shared).peer.pid == os.getpid()
            assert the_consumer(shared).peer.is_alive


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    gc.collect()  # what earlier tests left to a collection must not go meanwhile
    with SharedPool(pages=512, path=path):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            SharedPool(pages=512, path=path)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        SharedPool(pages=512, path=path)
    assert path.read_text() == "a file"


def test_a_socket_left_by_the_dead_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
        old.bind(str(path))
    with SharedPool(pages=512, path=path), pp.attach(path):
        pass


def test_another_users_process_is_refused(tmp_path: Path) -> None:
    with SharedPool(pages=512, uids=[12345]) as shared:
        with pytest.raises(HandshakeError, match="is not served here"):
            pp.attach(shared.connect())
        assert shared.stats().refused == 1


def test_writing_must_be_offered(shared: SharedPool) -> None:
    with pytest.raises(HandshakeError, match="reading only"):
        pp.attach(shared.connect(), writable=True)


def test_the_wrong_arena_is_refused(shared: SharedPool) -> None:
    with pytest.raises(HandshakeError, match="another arena"):
        pp.attach(shared.connect(), arena_id=bytes(15) + b"x")
    assert shared.stats().last_refusal.startswith("this is another arena")


def test_a_pool_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="no pools"):
        SharedPool([])
    with pp.PagePool(zero=True) as private, pytest.raises(ValueError, match="memfd"):
        SharedPool(private)
    growing = pp.PagePool(zero=True, memory=pp.PageAllocator(64 << 20, "memfd"))
    with growing, pytest.raises(ValueError, match="commit=True"):
        SharedPool(growing)
    dirty = pp.PagePool(memory=pp.PageAllocator(2 << 20, "memfd", commit=True))
    with dirty, pytest.raises(ValueError, match="zero=True"):
        SharedPool(dirty)
    with pytest.raises(ValueError, match="power of two"):
        SharedPool(max_pages=1000)


def test_pages_of_higher_orders() -> None:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    pool = pp.PagePool(memory=allocator, zero=True, order=2)
    with pool, SharedPool(pool) as shared, pp.attach(shared.connect()) as queue:
        the_consumer(shared)
        page = pool.alloc_pages()
        page[16383:] = b"z"
        assert shared.send(page) == 1
        batch = poll(queue)
        assert len(batch.frame(0)) == 16384
        assert batch.frame(0)[16383] == ord("z")


@pytest.mark.parametrize("closed", [False, True])
def test_the_interpreter_ends_with_pages_kept(shared: SharedPool, closed: bool) -> None:
    """The collector takes everything down in any order; a page must still find the rings to give itself back."""
    program = f"""
        import pagepool
        queue = pagepool.attach(sock)
        batch = next(queue.poll_forever())
        kept = batch.keep()
        kept.append(kept)
        batch.complete()
        queue.cycle = [queue, kept, batch]
        if {closed}:
            queue.close()
        print("kept", flush=True)
        os.close(1)
        import warnings
        warnings.simplefilter("ignore")
    """
    with process(shared, program) as child:
        consumer = the_consumer(shared)
        shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
        assert line_of(child) == "kept"
        assert child.wait(PATIENCE_S) == 0
        assert shared.wait_until_gone(PATIENCE_S)
        assert consumer.stats().bad_returns == 0
        assert shared.pool.lent == 0


def test_a_cycle_of_everything_is_collected(shared: SharedPool) -> None:
    queue = pp.attach(shared.connect())
    the_consumer(shared)
    shared.send(np.array(shared.pool.alloc_bulk(10), np.uint32))
    with poll(queue) as batch:
        kept = batch.keep()
    queue.close()
    queue.cycle = [queue, kept, batch, memoryview(kept[0]), np.frombuffer(kept[1], np.uint8)]  # type: ignore[attr-defined]
    del queue, kept, batch
    gc.collect()
    assert shared.wait_until_gone(PATIENCE_S)
    assert shared.pool.lent == 0
    assert shared.stats().lost == 0  # each page gave itself back


@pytest.mark.needs_pyarrow
def test_frames_of_another_process_as_an_arrow_batch(shared: SharedPool, queue: AttachedQueue) -> None:
    """The payload column lies in the other process's pages, and they go home with the last Arrow reference."""
    import pyarrow

    texts = [b"a frame of thirty bytes, no less", b"and another one that is longer yet"]
    for page, text in zip(fill(shared, *texts), texts, strict=True):
        shared.send(page, len(text))
    batch = poll(queue)
    arrow = pyarrow.record_batch(to_arrow(batch))
    batch.complete()
    assert queue.pool.lent == 2
    assert arrow.column("payload").to_pylist() == texts
    del arrow, batch
    gc.collect()
    assert queue.pool.lent == 0
    eventually(lambda: shared.pool.lent == 0)

# SPDX-License-Identifier: MIT
"""Visitors that say what they should not, or nothing: sent away, and nothing of them is left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from shared_doubles import (
    PATIENCE_S,
    eventually,
)

import pagepool as pp
from pagepool.shared import HandshakeError, SharedPool
from pagepool.shared.wire import Hello, Ready


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

# SPDX-License-Identifier: MIT
"""Messages to a second process, 64 at a time: a shared pool, a pipe, Unix sockets, `multiprocessing.Queue`.

The clock runs from the first send until the reader has said that it has read them all. `received` rows send pages that
hold their bytes already, as a NIC's do; `written` rows also copy the payload into the page, which every other means
does at least twice. The reader is on another CPU, and looks at the first bytes of each message.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from benchmarks.case import Case
from benchmarks.setting import Setting
from benchmarks.sharing.readers import queue_of_lists, serve
from pagepool.shared import SharedPool

__all__ = ["SIZES", "cases"]

SIZES = (64, 1500, 4096)
_BATCH = 64
_ROOT = Path(__file__).resolve().parents[2]
_PAGES = 2048
_WAIT_S = 10.0


class _Reader:
    """The other process, told how much to read and waited for."""

    def __init__(self) -> None:
        self.order_end, self._order = os.pipe()
        self._done, self.done_end = os.pipe()

    def started(self) -> None:
        """Close the reader's ends here, and wait until it is there."""
        os.close(self.order_end)
        os.close(self.done_end)
        if not os.read(self._done, 8):
            raise RuntimeError("the reader did not come up")

    def measure(self, send: Callable[[int], None], n: int) -> int:
        """Return the nanoseconds from the first send to the reader's answer."""
        os.write(self._order, (n * _BATCH).to_bytes(8, "little"))
        start = perf_counter_ns()
        send(n)
        if not os.read(self._done, 8):
            raise RuntimeError("the reader has ended")
        return perf_counter_ns() - start

    def close(self) -> None:
        os.close(self._order)
        os.close(self._done)


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return one row for each means and size."""
    found = []
    for size in SIZES:
        stream = f"pipe, {size} B"
        rows: list[tuple[str, Callable[[int], int], str]] = [
            (stream, _pipe(stack, setting, size), "os.write of 64 messages, os.readv"),
            (f"Unix stream, {size} B", _stream(stack, setting, size), "sendall of 64 messages, recv"),
            (f"Unix seqpacket, {size} B", _packets(stack, setting, size), "64 times send, recv_into"),
            (f"mp.Queue, {size} B", _queue(stack, setting, size), "put of a list of 64 messages, get"),
            (f"shared, received, {size} B", _shared(stack, setting, size, False, False), "pages lent as they are"),
            (f"shared, written, {size} B", _shared(stack, setting, size, True, False), "copied into pages, lent"),
            (f"shared spin, received, {size} B", _shared(stack, setting, size, False, True), "the reader never sleeps"),
        ]
        for name, measure, what in rows:
            against = stream if name != stream else None
            found.append(Case(name, measure, what, _BATCH, "message", overhead=None, against=against))
    return found


def _spawn(stack: ExitStack, setting: Setting, kind: str, size: int, data_fd: int) -> _Reader:
    reader = _Reader()
    fds = (data_fd, reader.order_end, reader.done_end)
    words = [kind, setting.where.others[0], size, _BATCH, *fds]
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sharing.readers", *map(str, words)], pass_fds=fds, cwd=_ROOT
    )
    stack.callback(child.wait, _WAIT_S)
    stack.callback(reader.close)
    reader.started()
    return reader


def _payload(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size * _BATCH, np.uint8).tobytes()


def _pipe(stack: ExitStack, setting: Setting, size: int) -> Callable[[int], int]:
    theirs, ours = os.pipe()
    stack.callback(os.close, ours)
    reader = _spawn(stack, setting, "stream", size, theirs)
    os.close(theirs)
    payload = memoryview(_payload(size))

    def send(n: int) -> None:
        for _ in range(n):
            done = os.write(ours, payload)
            while done < len(payload):
                done += os.write(ours, payload[done:])

    return lambda n: reader.measure(send, n)


def _sockets(stack: ExitStack, setting: Setting, size: int, kind: int, name: str) -> tuple[socket.socket, _Reader]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    stack.enter_context(ours)
    with theirs:
        return ours, _spawn(stack, setting, name, size, theirs.fileno())


def _stream(stack: ExitStack, setting: Setting, size: int) -> Callable[[int], int]:
    ours, reader = _sockets(stack, setting, size, socket.SOCK_STREAM, "stream")
    payload = _payload(size)

    def send(n: int) -> None:
        for _ in range(n):
            ours.sendall(payload)

    return lambda n: reader.measure(send, n)


def _packets(stack: ExitStack, setting: Setting, size: int) -> Callable[[int], int]:
    ours, reader = _sockets(stack, setting, size, socket.SOCK_SEQPACKET, "packets")
    payload = _payload(size)
    messages = [payload[k * size : (k + 1) * size] for k in range(_BATCH)]

    def send(n: int) -> None:
        for _ in range(n):
            for message in messages:
                ours.send(message)

    return lambda n: reader.measure(send, n)


def _serve_queue(
    queue: multiprocessing.Queue[list[bytes]], size: int, cpu: int, order_fd: int, done_fd: int, unused: list[int]
) -> None:
    for fd in unused:
        os.close(fd)
    serve(queue_of_lists(queue, size, _BATCH), cpu, order_fd, done_fd)


def _queue(stack: ExitStack, setting: Setting, size: int) -> Callable[[int], int]:
    context = multiprocessing.get_context("fork")  # spawn would have to send the descriptors
    queue: multiprocessing.Queue[list[bytes]] = context.Queue(64)
    reader = _Reader()
    child = context.Process(
        target=_serve_queue,
        args=(queue, size, setting.where.others[0], reader.order_end, reader.done_end, [reader._order, reader._done]),
        daemon=True,
    )
    child.start()
    stack.callback(child.join, _WAIT_S)
    stack.callback(queue.close)
    stack.callback(reader.close)
    reader.started()
    payload = _payload(size)
    messages = [payload[k * size : (k + 1) * size] for k in range(_BATCH)]

    def send(n: int) -> None:
        for _ in range(n):
            queue.put(messages)

    return lambda n: reader.measure(send, n)


def _shared(stack: ExitStack, setting: Setting, size: int, write: bool, spin: bool) -> Callable[[int], int]:
    shared = stack.enter_context(SharedPool(pages=_PAGES, max_pages=_PAGES // 2))
    with shared.connect() as theirs:
        reader = _spawn(stack, setting, "shared_spin" if spin else "shared", size, theirs.fileno())
    shared.wait_for_consumers(1, _WAIT_S)
    (consumer,) = shared.consumers
    rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)[:, :size]
    stack.callback(shared.close)
    pool, ids = shared.pool, np.empty(_BATCH, np.uint32)
    payload = np.frombuffer(_payload(size), np.uint8).reshape(_BATCH, size)
    lengths, offsets = np.full(_BATCH, size, np.uint32), np.zeros(_BATCH, np.uint32)

    def send(n: int) -> None:
        for _ in range(n):
            if consumer.link.slots - consumer.link.outstanding < _BATCH:
                consumer.wait_for_room(_BATCH, _WAIT_S)
            pool.alloc_bulk(ids)
            if write:
                rows[ids] = payload
            consumer.xdp_xmit(pool, ids, lengths, offsets)
            consumer.xdp_flush()

    return lambda n: reader.measure(send, n)

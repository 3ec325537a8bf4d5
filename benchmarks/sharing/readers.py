# SPDX-License-Identifier: MIT
"""The second process: ``python -m benchmarks.sharing.readers KIND CPU BYTES BATCH DATA_FD ORDER_FD DONE_FD``.

It reads as many messages as it is told to, adds up the first four bytes of each (all batches with NumPy, whatever they
came by), and says when it is done. Every kind gets the fastest way of reading that its means has.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Queue
from typing import Any

import numpy as np

__all__ = ["READERS", "serve"]

_NUMBER = np.dtype("<u4")


def _shared(fd: int, size: int, batch: int, spin: bool) -> Callable[[int], int]:
    import pagepool

    queue = pagepool.attach(fd, spin=spin)
    busy_us = math.inf if spin else 0.0

    def batches() -> Iterator[Any]:
        yield from queue.poll_forever(batch, busy_poll_us=busy_us)

    frames = batches()

    def read(messages: int) -> int:
        total = seen = 0
        while seen < messages:
            got = next(frames)
            total += int(got.headers(4).field(0, _NUMBER).sum())
            seen += len(got)
            got.complete()
        return total

    return read


def shared(fd: int, size: int, batch: int) -> Callable[[int], int]:
    """Frames of a shared pool, asleep when there are none."""
    return _shared(fd, size, batch, False)


def shared_spin(fd: int, size: int, batch: int) -> Callable[[int], int]:
    """Frames of a shared pool, never asleep."""
    return _shared(fd, size, batch, True)


def stream(fd: int, size: int, batch: int) -> Callable[[int], int]:
    """Read a pipe or a stream socket, a batch at a time into one buffer."""
    buffer = bytearray(size * batch)
    view = memoryview(buffer)
    first = np.ndarray((batch,), _NUMBER, buffer, 0, (size,))

    def read(messages: int) -> int:
        total = 0
        for _ in range(messages // batch):
            done = 0
            while done < len(buffer):
                done += os.readv(fd, [view[done:]])
            total += int(first.sum())
        return total

    return read


def packets(fd: int, size: int, batch: int) -> Callable[[int], int]:
    """Read a socket that keeps messages apart, one call for each."""
    sock = socket.socket(fileno=fd)
    buffer = bytearray(size * batch)
    views = [memoryview(buffer)[k * size : (k + 1) * size] for k in range(batch)]
    first = np.ndarray((batch,), _NUMBER, buffer, 0, (size,))
    receive = sock.recv_into

    def read(messages: int) -> int:
        total = 0
        for _ in range(messages // batch):
            for view in views:
                receive(view)
            total += int(first.sum())
        return total

    return read


def queue_of_lists(queue: Queue[list[bytes]], size: int, batch: int) -> Callable[[int], int]:
    """Read a `multiprocessing.Queue` whose items are lists of messages."""

    def read(messages: int) -> int:
        total = 0
        for _ in range(messages // batch):
            items = queue.get()
            total += int(np.ndarray((len(items),), _NUMBER, b"".join(items), 0, (size,)).sum())
        return total

    return read


READERS = {"shared": shared, "shared_spin": shared_spin, "stream": stream, "packets": packets}


def serve(read: Callable[[int], int], cpu: int, order_fd: int, done_fd: int) -> None:
    """Read when told to, and answer with the sum; until the orders end."""
    os.sched_setaffinity(0, {cpu})
    os.write(done_fd, bytes(8))
    while order := os.read(order_fd, 8):
        os.write(done_fd, (read(int.from_bytes(order, "little")) & (1 << 63) - 1).to_bytes(8, "little"))


def main() -> None:
    kind = sys.argv[1]
    cpu, size, batch, data_fd, order_fd, done_fd = map(int, sys.argv[2:])
    serve(READERS[kind](data_fd, size, batch), cpu, order_fd, done_fd)


if __name__ == "__main__":
    main()

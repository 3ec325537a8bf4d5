# SPDX-License-Identifier: MIT
"""Asks the host: send frames to a NIC, count the DMA that was refused, read or write the shared memory.

A call does not wait: the suite has a ring to poll while the host sends frames into it. ::

    call = host.inject("igb0", count=500)
    while not call.done():
        poll_the_ring()
    assert call.result()["echoed"] == 500

The questions leave on the results line as ``HOST {...}``, and the answers come back on it. What can be asked
is listed in ``rig/hostcalls.py``; unknown names and failures come back as `HostError`.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import time
from typing import Any

RESULTS_LINE = "/dev/ttyS1"

_numbers = itertools.count()
_answers: dict[str, dict[str, Any]] = {}
_unread = bytearray()
_line_fd = -1


class HostError(Exception):
    """The host could not do what was asked."""


class Call:
    """One question under way.

    Context: the thread that asked.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name = name
        self.key = f"{os.getpid()}-{next(_numbers)}"
        _open_line()
        question = json.dumps({"key": self.key, "call": name, "arguments": arguments})
        os.write(_line_fd, f"\nHOST {question}\n".encode())

    def done(self) -> bool:
        """Return whether the answer is here; never waits."""
        _read_answers(0.0)
        return self.key in _answers

    def result(self, timeout_seconds: float = 120.0) -> dict[str, Any]:
        """Wait for the answer and return it.

        Raises
        ------
        HostError
            The host failed, or said nothing in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while self.key not in _answers:
            if time.monotonic() > deadline:
                raise HostError(f"{self.name}: no answer from the host in {timeout_seconds:.0f} s")
            _read_answers(1.0)
        answer = _answers[self.key]
        if "error" in answer:
            raise HostError(f"{self.name}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result


def inject(
    nic: str, count: int, *, window: int = 16, seed: int = 0, min_bytes: int = 60, max_bytes: int = 1514
) -> Call:
    """Send ``count`` frames to ``nic`` and expect each back with its Ethernet addresses exchanged.

    Parameters
    ----------
    window : int
        Frames sent and not yet back, at most; keep it under half the ring.

    Returns
    -------
    Call
        Result: ``echoed``, ``wrong`` and ``lost`` frames, and ``seconds``.
    """
    sizes = {"min_bytes": min_bytes, "max_bytes": max_bytes}
    return Call("inject", {"nic": nic, "count": count, "window": window, "seed": seed, **sizes})


def send(nic: str, count: int, *, first: int = 0, seed: int = 0, min_bytes: int = 60, max_bytes: int = 1514) -> Call:
    """Send frames ``first`` to ``first + count - 1`` at once, at most a ring full, and expect nothing back.

    Returns
    -------
    Call
        Result: ``sent``. The frames may still be on their way when it comes.
    """
    sizes = {"min_bytes": min_bytes, "max_bytes": max_bytes}
    return Call("send", {"nic": nic, "count": count, "first": first, "seed": seed, **sizes})


def expect(nic: str, count: int, *, seed: int = 0, min_bytes: int = 60, max_bytes: int = 1514) -> Call:
    """Wait for frames 0 to ``count - 1`` of ``seed`` from ``nic``, in any order.

    Returns
    -------
    Call
        Result: ``exact``, ``wrong`` and ``lost`` frames.
    """
    return Call("expect", {"nic": nic, "count": count, "seed": seed, "min_bytes": min_bytes, "max_bytes": max_bytes})


def cross(
    a: str, b: str, count: int, *, window: int = 16, seed: int = 0, min_bytes: int = 60, max_bytes: int = 1514
) -> Call:
    """Send ``count`` frames into each of two NICs, for a station that is nobody's, and expect them out of the other.

    Returns
    -------
    Call
        Result: ``exact``, ``wrong`` and ``lost`` frames, of both directions together.
    """
    sizes = {"min_bytes": min_bytes, "max_bytes": max_bytes}
    return Call("cross", {"a": a, "b": b, "count": count, "window": window, "seed": seed, **sizes})


def iommu_faults() -> int:
    """Return how many device accesses the IOMMU has refused so far: unlike the kernel's log, every one.

    Compare with the number before. QEMU carries a refused DMA out in pieces of at most 4 bytes, each counted:
    a frame of 1000 bytes is some 250 refusals. virtio-iommu stops counting when its event queue is full.
    """
    return int(Call("iommu_faults", {}).result()["count"])


def iotlb_invalidations() -> int:
    """Return how many IOTLB invalidations the kernel has queued so far (Intel IOMMU only, else 0)."""
    return int(Call("iotlb_invalidations", {}).result()["count"])


def read_shared(offset: int, size_bytes: int) -> bytes:
    """Return what the host finds in the shared memory (ivshmem's BAR 2); at most 1024 bytes."""
    return bytes.fromhex(Call("read_shared", {"offset": offset, "size_bytes": size_bytes}).result()["hex"])


def write_shared(offset: int, content: bytes) -> None:
    """Have the host write into the shared memory; at most 1024 bytes."""
    Call("write_shared", {"offset": offset, "hex": content.hex()}).result()


def borrow(arena_bytes: int, rings_at: int, count: int, *, timeout_s: float = 60.0) -> Call:
    """Have the host be a consumer of a pool over the shared memory, through rings at byte `rings_at` of it.

    Returns
    -------
    Call
        Result: ``crcs`` of the frames it read, in order, pages ``given`` back and still ``lent`` to it, and ``bad``
        words that it found. At most 48 frames: an answer holds 1024 bytes.
    """
    return Call("borrow", {"arena_bytes": arena_bytes, "rings_at": rings_at, "count": count, "timeout_s": timeout_s})


def _open_line() -> None:
    global _line_fd
    if _line_fd < 0:
        _line_fd = os.open(RESULTS_LINE, os.O_RDWR | os.O_NOCTTY)


def _read_answers(timeout_seconds: float) -> None:
    """Take in what the host has said, waiting at most ``timeout_seconds`` for a first byte."""
    while select.select([_line_fd], [], [], timeout_seconds)[0]:
        timeout_seconds = 0.0
        _unread.extend(os.read(_line_fd, 4096))
        while (end := _unread.find(b"\n")) >= 0:
            answer = json.loads(_unread[:end])
            del _unread[: end + 1]
            _answers[answer["key"]] = answer  # of a process before us too: nobody asks for its keys

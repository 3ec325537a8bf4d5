# SPDX-License-Identifier: MIT
"""Frames that go into one NIC and must come out of another, unchanged, both ways at once.

The host's end of a test of forwarding: it knows two cables and nothing of what joins them in the guest.
"""

from __future__ import annotations

import select
from collections.abc import Iterable

from ..guest.support.frames import make_frame
from .frames import QUIET_SECONDS, FramePort, is_ipv4

FOREIGN_STATION = bytes.fromhex("02000000 00aa")  # nobody's: only who receives for everybody gets it


class _Way:
    """One direction: at most `window` frames under way."""

    def __init__(self, sender: FramePort, receiver: FramePort, frames: Iterable[bytes], window: int) -> None:
        self.receiver = receiver
        self.exact = 0
        self._sender = sender
        self._frames = iter(frames)
        self._window = window
        self._awaited: set[bytes] = set()

    def send(self) -> bool:
        """Send what the window allows; return whether any frame is still awaited."""
        while len(self._awaited) < self._window and (frame := next(self._frames, None)) is not None:
            self._awaited.add(frame)
            self._sender.send_frame(frame)
        return bool(self._awaited)

    def take(self, frame: bytes) -> bool:
        """Return whether the frame is one that is awaited here."""
        if frame not in self._awaited:
            return False
        self._awaited.remove(frame)
        self.exact += 1
        return True


def cross(
    a: FramePort, b: FramePort, count: int, window: int, seed: int, min_bytes: int, max_bytes: int
) -> dict[str, float]:
    """Send `count` frames into each of two NICs and compare what comes out of the other with them, byte for byte.

    Returns
    -------
    dict
        ``exact`` frames of both directions together; ``wrong``: frames that were changed, doubled, or came out where
        they went in; ``lost``.
    """

    def frames(number: int) -> Iterable[bytes]:
        for i in range(count):
            size = {"min_bytes": min_bytes, "max_bytes": max_bytes}
            yield make_frame(i, seed=seed + number, destination=FOREIGN_STATION, **size)

    with a.alone(), b.alone():
        ways = [_Way(a, b, frames(0), window), _Way(b, a, frames(1), window)]
        wrong = 0
        while True:
            awaited = [way.send() for way in ways]
            if not any(awaited):
                break
            ready = select.select([way.receiver for way in ways], [], [], QUIET_SECONDS)[0]
            if not ready:
                break
            for way in ways:
                if way.receiver in ready and is_ipv4(frame := way.receiver.receive_frame()):
                    wrong += not way.take(frame)
    exact = sum(way.exact for way in ways)
    return {"exact": exact, "wrong": wrong, "lost": 2 * count - exact}

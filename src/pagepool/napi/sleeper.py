# SPDX-License-Identifier: MIT
"""Sleep until a device or another thread has something.

One epoll set of an eventfd and, where there is one, the device's file descriptor: the interrupt line of a
NAPI instance, and nothing of its state. Invariant: a `wake` that comes at any time before or during a `sleep`
ends that sleep; none is lost.
"""

from __future__ import annotations

import math
import os
import select
import threading
from enum import Enum

__all__ = ["Sleeper", "WokenBy"]


class WokenBy(Enum):
    """How a sleep ended."""

    WAKE = "wake"
    DEVICE = "device"
    TIMEOUT = "timeout"
    OTHER = "other"  # what another instance of the same thread waited for


class Sleeper:
    """An epoll set with a doorbell.

    Parameters
    ----------
    fd : int or None
        A descriptor that becomes readable when the device has work; watched level-triggered, so work that
        arrives between a poll and the sleep is seen. It stays the caller's to close.

    Raises
    ------
    OSError
        If descriptors run out, or `fd` cannot be watched.

    Context: `sleep` by one thread, `wake` by any, also after `close`.
    """

    __slots__ = ("_epoll", "_eventfd", "_fd", "_lock")

    def __init__(self, fd: int | None) -> None:
        self._lock = threading.Lock()  # a wake from another thread must not meet a descriptor that is being closed
        self._eventfd = -1
        self._fd = fd
        self._epoll = select.epoll()
        try:
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll.register(self._eventfd, select.EPOLLIN)
            if fd is not None:
                self._epoll.register(fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def sleep(self, timeout: float | None) -> WokenBy:
        """Sleep.

        Parameters
        ----------
        timeout : float or None
            Seconds at most; ``None`` for ever.
        """
        # Round up: epoll counts whole milliseconds, and 0 would spin.
        seconds = -1.0 if timeout is None else math.ceil(max(timeout, 0.0) * 1e3) / 1e3
        ready = {fd for fd, _ in self._epoll.poll(seconds)}
        if self._eventfd in ready:
            try:
                os.eventfd_read(self._eventfd)
            except BlockingIOError:
                pass
            if ready == {self._eventfd}:
                return WokenBy.WAKE
        return WokenBy.DEVICE if ready else WokenBy.TIMEOUT

    def fileno(self) -> int:
        """Return a descriptor that is readable when `sleep` would return at once; for a set of several."""
        return self._epoll.fileno()

    def wake(self) -> None:
        """End the sleep in progress, or the next one."""
        with self._lock:
            if self._eventfd >= 0:
                try:
                    os.eventfd_write(self._eventfd, 1)
                except BlockingIOError:
                    pass  # the counter is full of wake-ups already

    def close(self) -> None:
        """Close the epoll set and the eventfd. Idempotent."""
        with self._lock:
            eventfd, self._eventfd = self._eventfd, -1
            if eventfd >= 0:
                os.close(eventfd)
        self._epoll.close()

    def __del__(self) -> None:
        if hasattr(self, "_epoll"):
            self.close()

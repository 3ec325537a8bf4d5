# SPDX-License-Identifier: MIT
"""A layer that keeps the last calls on a device, and shows each to a callback. It judges nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pagepool.dma.call import DmaCall
from pagepool.dma.device import DmaDevice
from pagepool.dma.layer import DmaLayer


@dataclass(frozen=True, slots=True)
class DmaEvent:
    """A call that the device has answered.

    Attributes
    ----------
    seq : int
        Number of the call, from 0.
    time_ns : int
        When it was answered, by ``time.monotonic_ns``.
    call : DmaCall
        What was asked; a map that succeeded has its dma_addr.
    errno : int
        0 for success; -1 for an exception that has no errno.
    """

    seq: int
    time_ns: int
    call: DmaCall
    errno: int = 0

    def __str__(self) -> str:
        return f"{self.seq} {self.call}" + (f": errno {self.errno}" if self.errno else "")


class Tracer(DmaLayer):
    """Keep the last calls on a device.

    Parameters
    ----------
    inner : DmaDevice
        The device behind.
    max_events : int
        How many to keep; older ones are dropped and counted.
    callback : callable, optional
        Called with each `DmaEvent` in the thread that made the call, with no lock held. It must not
        raise: by then the call has been made.
    """

    def __init__(
        self,
        inner: DmaDevice,
        *,
        max_events: int = 1024,
        callback: Callable[[DmaEvent], None] | None = None,
    ) -> None:
        if max_events < 1:
            raise ValueError(f"max_events {max_events} is less than 1")
        super().__init__(inner)
        self.callback = callback
        self._lock = threading.RLock()  # see DmaLayer: a page may die in here
        self._events: deque[DmaEvent] = deque(maxlen=max_events)
        self._seq = 0

    def after(self, call: DmaCall, error: Exception | None) -> None:
        """Keep the call."""
        number = 0 if error is None else getattr(error, "errno", None) or -1
        with self._lock:
            event = DmaEvent(self._seq, time.monotonic_ns(), call, number)
            self._seq += 1
            self._events.append(event)
        if self.callback is not None:
            self.callback(event)

    @property
    def events(self) -> tuple[DmaEvent, ...]:
        """The calls that are kept, oldest first."""
        with self._lock:
            return tuple(self._events)

    @property
    def dropped(self) -> int:
        """How many calls were seen and are not kept, `clear` included."""
        with self._lock:
            return self._seq - len(self._events)

    def clear(self) -> None:
        """Forget the calls that are kept; numbers go on."""
        with self._lock:
            self._events.clear()

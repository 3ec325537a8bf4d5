# SPDX-License-Identifier: MIT
"""The signals that end a receive (Ctrl-C, SIGTERM, a terminal that goes away), each as `KeyboardInterrupt`.

Held back while an interface is opened or closed: what the kernel does not clean up by itself after a process, such as
rules in a NIC, is written down before anybody can be interrupted. A signal that the parent has us ignore (nohup) stays
ignored. Invariant: the first signal outside `hold` ends what is being done; the second is taken for the first, since
some senders send two at once; the third interrupts also what the first one began.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType
from typing import Self

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Handlers for a ``with`` block, in the main thread; the former ones are put back at its end.

    Notes
    -----
    Context: main thread.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._depth = 0
        self._is_pending = False
        self._former = ExitStack()

    def hold(self) -> None:
        """From now on remember a signal instead of raising; calls nest."""
        self._depth += 1

    def release(self) -> None:
        """End the innermost `hold`.

        Raises
        ------
        KeyboardInterrupt
            A signal came meanwhile, and this was the outermost.
        """
        self._depth -= 1
        if self._depth == 0 and self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def forget(self) -> None:
        """End the innermost `hold`; what came meanwhile asked for what has happened."""
        self._is_pending = False
        self._depth -= 1

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            former = signal.getsignal(number)
            if former is not signal.SIG_IGN:
                self._former.callback(signal.signal, number, former)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        self._former.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._depth > 0:
            self._is_pending = True
            return
        self._seen += 1
        if self._seen != 2:
            raise KeyboardInterrupt

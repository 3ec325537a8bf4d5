# SPDX-License-Identifier: MIT
"""Hold Ctrl-C back over the few lines where a page changes hands; the ``local_irq_save`` of this package.

Python raises `KeyboardInterrupt` between any two steps of the main thread, also between "the pool gave me 64
pages" and the line that writes them down. Inside `enter` ... `leave` the first Ctrl-C is remembered and
raised by `leave`; a second one is raised at once, so that nothing can make the program deaf. Outside it acts
as Python's own handler does. Invariant: only the main thread is ever delayed, and only a handler that is
Python's default is replaced.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["InterruptGuard", "guard"]


class InterruptGuard:
    """A counter of nested critical sections of the main thread, and the handler that respects it.

    Use the one instance, `guard`: there is one SIGINT.

    Notes
    -----
    `enter` and `leave` cost about 50 ns each; without a GIL several times that, for every thread then counts its
    references to this one object. A thread that `is_delayed` says no to need not call them.
    """

    __slots__ = ("_depth", "_lock", "_main", "_main_ident", "_pending", "_users")

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False
        self._users = 0
        self._lock = threading.Lock()  # of `_users`: threads may open and close queues at once
        self._main = threading.main_thread()
        self._main_ident = self._main.ident  # asked of the thread object it costs four times as much

    @property
    def is_installed(self) -> bool:
        """bool : whether the SIGINT handler is this one."""
        return signal.getsignal(signal.SIGINT) == self._handle

    def is_delayed(self) -> bool:
        """Whether `enter` and `leave` do anything in the calling thread; it stays so as long as the thread lives."""
        return threading.get_ident() == self._main_ident

    def install(self) -> None:
        """Take SIGINT over, if Python's default handler has it. Each call needs one `uninstall`.

        Context: any thread; from another than the main thread only the user is counted.
        """
        with self._lock:
            self._users += 1
        if threading.current_thread() is self._main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def uninstall(self) -> None:
        """Give SIGINT back when the last user goes."""
        with self._lock:
            self._users = max(self._users - 1, 0)
        if self._users == 0 and threading.current_thread() is self._main and self.is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def enter(self) -> None:
        """Begin a critical section; pair it with `leave` in a ``finally``."""
        if threading.get_ident() == self._main_ident:
            self._depth += 1

    def leave(self) -> None:
        """End a critical section; raise the Ctrl-C that came in it, if this was the outermost.

        Raises
        ------
        KeyboardInterrupt
            If one was held back.
        """
        if threading.get_ident() != self._main_ident:
            return
        self._depth -= 1
        if self._pending and self._depth == 0:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._depth > 0 and not self._pending:
            self._pending = True
            return
        signal.default_int_handler(signum, frame)


guard = InterruptGuard()

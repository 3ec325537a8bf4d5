# SPDX-License-Identifier: MIT
"""One boot as those see it who wait for its results: each outcome as soon as the guest has said it.

It knows nothing of QEMU: whoever runs the machine feeds it lines and says how it ended. Once it has ended,
every question has an answer, whatever happened to the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .boots import Boot
from .results import Outcome, Results


class BootRun:
    """The results of one boot, while it runs and after.

    Parameters
    ----------
    boot : Boot
        What is booted.
    name : str
        For the summary, if it is not the boot's: it has a part of the tests.

    Attributes
    ----------
    ended : str
        How the machine ended; empty until it has.
    last_words : str
        Last of the kernel's messages, from the panic on if there was one.
    seconds : float
        From the start of QEMU to its end.
    failure : Exception or None
        Why there was no machine at all, or why it could not be watched to its end.

    Context: one thread runs the machine and calls `machine_started`, `feed` and `finish`; any other may wait or
    `stop`.
    """

    def __init__(self, boot: Boot, name: str = "") -> None:
        self.boot = boot
        self.name = name or boot.name
        self.results = Results()
        self.ended = ""
        self.last_words = ""
        self.seconds = 0.0
        self.failure: Exception | None = None
        self._changed = threading.Condition()
        self._kill: Callable[[], None] | None = None
        self._stopping = False

    def machine_started(self, kill: Callable[[], None]) -> None:
        """Say how the machine can be ended; it is, at once, if `stop` came before it."""
        with self._changed:
            self._kill = kill
            if self._stopping:
                kill()

    def feed(self, line: str) -> None:
        """Take in one line of the guest."""
        with self._changed:
            self.results.feed(line)
            self._changed.notify_all()

    def finish(
        self, ended: str, *, last_words: str = "", seconds: float = 0.0, failure: Exception | None = None
    ) -> None:
        """Say that there is no machine any more; wakes all who wait."""
        with self._changed:
            self.last_words, self.seconds, self.failure = last_words, seconds, failure
            self._kill = None
            self.ended = ended
            self._changed.notify_all()

    def stop(self) -> None:
        """End the machine, or do not let it start; does not wait for it."""
        with self._changed:
            self._stopping = True
            if self._kill:
                self._kill()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def outcome(self, suite: str, name: str) -> Outcome:
        """Wait until one test has ended, or the machine, and return how; never without an answer.

        Raises
        ------
        Exception
            `failure`, if the test has no result because of it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.ended or (suite, name) in self.results.outcomes)
            if self.failure and (suite, name) not in self.results.outcomes:
                raise self.failure
            return self.results.outcome(suite, name, self.ended)

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Wait until the machine has ended, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended, timeout_seconds)

    def summary(self) -> str:
        """Return one line about the boot."""
        facts, name = self.results.boot, self.name
        if self.failure:
            return f"{name}: {self.failure}"
        if not facts:
            return f"{name}: the guest said nothing in {self.seconds:.1f} s ({self.ended})"
        up = f"Linux {facts['kernel']}, Python {facts['python']} up at {facts['seconds']} s"
        return f"{name}: {up}, {len(self.results.outcomes)} results, {self.seconds:.1f} s ({self.ended})"

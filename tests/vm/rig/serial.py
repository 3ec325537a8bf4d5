# SPDX-License-Identifier: MIT
"""A running QEMU and its results line: lines come out until the machine ends or is ended, answers go in."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

INTERRUPTED = "interrupted"


class Machine:
    """A QEMU process whose standard output and input are the guest's results line.

    Parameters
    ----------
    command : list of str
        QEMU's command line.
    inherited : list of int
        File descriptors that QEMU keeps.
    log : Path
        Gets QEMU's own messages: a file, since a pipe that nobody reads would stop QEMU when full.
    limit_seconds : float
        The machine is ended after so long.

    Context: one thread iterates over `lines` and calls `stop`; any thread may call `answer` and `kill`.
    """

    def __init__(self, command: list[str], inherited: list[int], log: Path, limit_seconds: float) -> None:
        self.ended = ""
        self._log = log
        self._limit_seconds = limit_seconds
        self._started = time.monotonic()
        self._writing = threading.Lock()
        self._stopped = False
        with log.open("wb") as messages:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                pass_fds=inherited,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def lines(self) -> Iterator[str]:
        """Yield each line of the guest as it comes; after the last, `ended` says how the machine ended."""
        assert self._process.stdout is not None
        unread = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                left = self._started + self._limit_seconds - time.monotonic()
                if not selector.select(max(left, 0)):
                    self.ended = f"stopped after {self._limit_seconds:.0f} s"
                    break
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    break
                *whole, unread = (unread + chunk).replace(b"\r", b"").split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        self.stop()

    def answer(self, line: str) -> None:
        """Send a line to the guest."""
        assert self._process.stdin is not None
        with self._writing:
            try:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                pass  # the machine is gone; nobody waits for the answer

    def kill(self) -> None:
        """End the machine if it still runs; `lines` then ends."""
        if self._process.poll() is None:
            self.ended = self.ended or INTERRUPTED
            self._process.kill()

    def stop(self) -> None:
        """Wait for the machine's end, and forbid it to be late; calling it again does nothing."""
        if self._stopped:
            return
        self._stopped = True
        if self.ended:
            self._process.kill()
        status = self._process.wait()
        with self._writing:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        if not self.ended and status:
            self.ended = f"QEMU exited with status {status}: {self._log.read_text(errors='replace').strip()[-500:]}"
        self.ended = self.ended or "powered off"

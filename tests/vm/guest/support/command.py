# SPDX-License-Identifier: MIT
"""The command ``pagepool`` in a forked child: importing what it needs takes most of its time here, and is done once."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from typing import IO

from .suite import Skip


class Command:
    """``pagepool ARGUMENTS``, started; what it says is in `stdout` and `stderr`, text.

    Raises
    ------
    Skip
        Its libraries are not in the guest.

    Context: no other thread runs.
    """

    def __init__(self, *arguments: str) -> None:
        if importlib.util.find_spec("typer") is None:
            raise Skip("typer is not in the guest")
        import pagepool.cli.app  # noqa: F401
        from pagepool.cli.main import main

        pipes = [os.pipe(), os.pipe()]
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                for number, (_, end) in enumerate(pipes, 1):
                    os.dup2(end, number)
                sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
                status = main(list(arguments))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        self.stdout, self.stderr = (_reader(*pipe) for pipe in pipes)

    def wait(self) -> int:
        """Return the exit status, when it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self) -> None:
        """Ask it to end, as Ctrl-C does."""
        os.kill(self.pid, signal.SIGTERM)


def _reader(reader: int, writer: int) -> IO[str]:
    os.close(writer)
    return open(reader)

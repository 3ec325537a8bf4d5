# SPDX-License-Identifier: MIT
"""Runs the suites of the plan one after another, each in a process forked from this one, and sums up.

Nothing of a suite runs here. This process has imported what most of them want, so that they do not each: under
emulation numpy and pagepool take seconds. The first process starts it, ``python -m vm.guest.support.suites``.
"""

from __future__ import annotations

import importlib
import os

from . import runner
from .plan import plan
from .runner import CURRENT_TEST

IMPORTED = ("numpy", "pagepool.drivers.vfio", "pagepool.drivers.af_xdp", "pagepool.drivers.bridge")


def main() -> None:
    """Run them all; say ``DONE``, however many failed."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name}: {error}", flush=True)  # each suite that wants it will say so
    failures = sum(run_suite(suite, names) for suite, names in plan().suites)
    print(f"DONE rc={min(failures, 127)}", flush=True)


def run_suite(suite: str, names: list[str]) -> int:
    """Run a suite in a process of its own, go on after a test that kills it; return how many failed."""
    print(f"\nSUITE {suite}", flush=True)
    failures, left = 0, names
    while left:
        CURRENT_TEST.write_text("")
        pid = os.fork()
        if pid == 0:
            runner.run(suite, left)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        current = CURRENT_TEST.read_text()
        if not current:  # ended by itself; its exit status is the number of failures
            return failures + abs(code)
        print(f"\nFAIL {current}: its process ended with {_exit_text(code)}", flush=True)
        failures += 1
        left = left[left.index(current) + 1 :]
    return failures


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


if __name__ == "__main__":
    main()

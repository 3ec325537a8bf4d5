# SPDX-License-Identifier: MIT
"""Runs tests of one suite in this process, prints a line for each, and ends it.

A test is a function ``test_NAME`` that returns; one that raises has failed. A test that takes too long ends
the process with the traceback of every thread; the first process then goes on with the tests after it.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .plan import plan
from .suite import Skip

CURRENT_TEST = Path("/tmp/current-test")


def run(suite: str, names: list[str]) -> NoReturn:
    """Run tests of a suite; the exit status is the number of failures."""
    failures = 127
    try:
        failures = main(suite, names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(min(failures, 127))  # not the interpreter's exit: a pool or a mapping left over is no test's failure


def main(suite: str, names: list[str]) -> int:
    """Run ``names`` of ``suite`` and return the number of failures."""
    faulthandler.enable(file=sys.stdout)
    try:
        module = importlib.import_module(f"vm.guest.{suite}")
    except Exception as error:
        for name in names:
            _say(f"RUN {name}")
            traceback.print_exc(file=sys.stdout)
            _say(f"FAIL {name}: the suite cannot be imported: {_one_line(error)}")
        return len(names)
    return sum(not run_test(module, name) for name in names)


def run_test(module: ModuleType, name: str) -> bool:
    """Run one test, print its line, and return whether it did not fail."""
    CURRENT_TEST.write_text(name)
    _say(f"RUN {name}")
    faulthandler.dump_traceback_later(plan().test_seconds, exit=True, file=sys.stdout)
    passed = True
    function, _, case = name.partition("[")
    try:
        getattr(module, f"test_{function}")(*([case[:-1]] if case else []))
        line = f"PASS {name}"
    except Skip as reason:
        line = f"SKIP {name}: {_one_line(reason, named=False)}"
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        line, passed = f"FAIL {name}: {_one_line(error)}", False
    faulthandler.cancel_dump_traceback_later()
    _say(line)
    CURRENT_TEST.write_text("")
    return passed


def _say(line: str) -> None:
    """Print a line of the protocol, at the start of a line whatever the test printed last."""
    print(f"\n{line}", flush=True)


def _one_line(error: BaseException, *, named: bool = True) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if named and text else text or type(error).__name__

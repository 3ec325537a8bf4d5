# SPDX-License-Identifier: MIT
"""Boot and watch: ``python -m tests.vm [BOOT...] [--suite NAME]`` prints the guest's lines as they come."""

from __future__ import annotations

import argparse
import sys

from .rig.boots import BOOTS
from .rig.discovery import discover
from .rig.session import Rig
from .rig.side_by_side import SideBySide, free_places, shares
from .rig.unavailable import Unavailable


def main() -> int:
    """Run the boots asked for; return 1 if a test failed or gave no result, 77 if the rig cannot run here."""
    names = [boot.name for boot in BOOTS]
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("boots", nargs="*", metavar="BOOT", help=f"of {', '.join(names)}; all without one")
    parser.add_argument("--suite", action="append", help="run this suite alone; may be given more than once")
    parser.add_argument("--places", type=int, default=free_places(), help="machines at once; default %(default)s here")
    arguments = parser.parse_args()
    if unknown := set(arguments.boots) - set(names):
        parser.error(f"no boot {', '.join(sorted(unknown))}")
    tests = [test for test in discover(names) if not arguments.suite or test.suite in arguments.suite]
    wanted = shares([boot for boot in BOOTS if boot.name in (arguments.boots or names)], tests)
    boots = SideBySide(wanted, arguments.places, _show if len(wanted) == 1 else _show_with_name)
    bad = 0
    try:
        with Rig() as rig:
            try:
                boots.start(rig)
                for share in wanted:
                    run = boots.runs[share.name]
                    run.wait()
                    if isinstance(run.failure, Unavailable):
                        raise run.failure
                    bad += sum(run.results.outcome(t.suite, t.name, run.ended).verdict == "FAIL" for t in share.tests)
                    if not run.results.done:
                        print(run.last_words)
            finally:
                boots.close()
    except Unavailable as reason:
        print(f"cannot run: {reason}", file=sys.stderr)
        return 77
    except KeyboardInterrupt:
        return 130
    print(*(run.summary() for run in boots.runs.values()), f"{bad} failed", sep="\n")
    return 1 if bad else 0


def _show(_: str, line: str) -> None:
    if line:
        print(line, flush=True)


def _show_with_name(name: str, line: str) -> None:
    if line:
        print(f"{name:14} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""Boot and watch: ``python -m tests.vm [BOOT...] [--suite NAME]`` prints the guest's lines as they come."""

from __future__ import annotations

import argparse
import sys

from .rig.boots import BOOTS
from .rig.discovery import discover
from .rig.session import Rig
from .rig.unavailable import Unavailable


def main() -> int:
    """Run the boots asked for; return 1 if a test failed or gave no result, 77 if the rig cannot run here."""
    names = [boot.name for boot in BOOTS]
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("boots", nargs="*", metavar="BOOT", help=f"of {', '.join(names)}; all without one")
    parser.add_argument("--suite", action="append", help="run this suite alone; may be given more than once")
    arguments = parser.parse_args()
    if unknown := set(arguments.boots) - set(names):
        parser.error(f"no boot {', '.join(sorted(unknown))}")
    tests = [test for test in discover(names) if not arguments.suite or test.suite in arguments.suite]
    bad, reports = 0, []
    try:
        rig = Rig()
        for boot in BOOTS:
            wanted = [test for test in tests if test.boot == boot.name]
            if (arguments.boots and boot.name not in arguments.boots) or not wanted:
                continue
            report = rig.run(boot, wanted, _show)
            reports.append(report)
            bad += sum(report.results.outcome(t.suite, t.name, report.ended).verdict == "FAIL" for t in wanted)
            if not report.results.done:
                print(report.last_words)
    except Unavailable as reason:
        print(f"cannot run: {reason}", file=sys.stderr)
        return 77
    print(*(report.summary() for report in reports), f"{bad} failed", sep="\n")
    return 1 if bad else 0


def _show(line: str) -> None:
    if line:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""What the guest says about its tests, line by line, and the results that a host reads out of it.

The protocol is plain lines, so that a person can read it as it scrolls by::

    BOOT {"kernel": "6.1.0", "python": "3.11.2", "seconds": 4.1}
    SUITE smoke
    RUN numpy                       a test starts; what is printed from here on is its output
    PASS numpy                      or  FAIL numpy: reason  or  SKIP numpy: reason
    DONE rc=0

A test that started and never ended, or never started, has no result here: `Results.outcome` says so in words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

VERDICT = re.compile(r"(PASS|FAIL|SKIP) (.+?)(?:: (.*))?")


@dataclass(frozen=True)
class Outcome:
    """How one test ended: ``verdict`` is PASS, FAIL or SKIP."""

    verdict: str
    message: str = ""
    output: str = ""


@dataclass
class Results:
    """The results of one boot; `feed` it every line."""

    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    boot: dict[str, object] = field(default_factory=dict)
    done: bool = False
    suite: str = ""
    running: str = ""
    _output: list[str] = field(default_factory=list)

    def feed(self, line: str) -> None:
        """Take in one line of the guest."""
        word, _, rest = line.partition(" ")
        verdict = VERDICT.fullmatch(line)
        if verdict:
            text = "\n".join(self._output).strip("\n")
            self.outcomes[self.suite, verdict[2]] = Outcome(verdict[1], verdict[3] or "", text)
            self.running = ""
            self._output.clear()
        elif word == "RUN":
            self.running = rest
            self._output.clear()
        elif word == "SUITE":
            self.suite = rest
        elif word == "BOOT":
            self.boot = json.loads(rest)
        elif word == "DONE":
            self.done = True
        else:
            self._output.append(line)

    def outcome(self, suite: str, name: str, ended: str) -> Outcome:
        """Return the outcome of one test; of one without a result, a failure that says what became of it.

        Parameters
        ----------
        ended : str
            How the machine ended, for the message.
        """
        known = self.outcomes.get((suite, name))
        if known:
            return known
        if (self.suite, self.running) == (suite, name):
            return Outcome("FAIL", f"still running when the machine ended: {ended}", "\n".join(self._output))
        return Outcome("FAIL", f"no result from the guest: {ended}")

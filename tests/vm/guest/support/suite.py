# SPDX-License-Identifier: MIT
"""Words for writing a suite: which boots run a test, with which cases, and that a test cannot run.

The host reads these decorators from the source without importing it, so their arguments must be literal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])


class Skip(Exception):
    """Raised by a test that cannot run here; prefer ``only_on``: the guest is ours, nothing is unforeseen."""


def cases(*names: str) -> Callable[[Test], Test]:
    """Run the test once for each of ``names``, which it gets as its argument."""

    def mark(test: Test) -> Test:
        return test

    return mark if names else cases("")


def only_on(*boots: str) -> Callable[[Test], Test]:
    """Run the test in these boots alone."""

    def mark(test: Test) -> Test:
        return test

    return mark if boots else only_on("")

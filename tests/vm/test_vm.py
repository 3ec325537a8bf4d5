# SPDX-License-Identifier: MIT
"""One pytest test for each test of each guest suite in each boot; the first to ask boots for all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .rig.boots import BOOTS
from .rig.discovery import GuestTest, discover
from .rig.session import BootReport


@pytest.mark.needs_vm
@pytest.mark.parametrize("guest_test", discover([boot.name for boot in BOOTS]), ids=str)
def test_guest(guest_test: GuestTest, report_of: Callable[[str], BootReport], vm_is_required: bool) -> None:
    report = report_of(guest_test.boot)
    outcome = report.results.outcome(guest_test.suite, guest_test.name, report.ended)
    if outcome.output:
        print(outcome.output)
    if outcome.verdict == "SKIP" and not vm_is_required:
        pytest.skip(outcome.message)
    if outcome.verdict != "PASS":
        pytest.fail(outcome.message, pytrace=False)

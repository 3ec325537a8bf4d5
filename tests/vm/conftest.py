# SPDX-License-Identifier: MIT
"""Boots each configuration once per session, with the tests that were selected, and hands out the results."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .rig.boots import BOOTS
from .rig.discovery import GuestTest
from .rig.session import BootReport, Rig
from .rig.unavailable import Unavailable

REPORTS = pytest.StashKey[dict[str, BootReport | Exception]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require``, unless the tests' common conftest has already."""
    try:
        parser.addoption("--require", action="append", default=[], metavar="NEED", help="fail, not skip, without NEED")
    except ValueError:
        pass


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_vm: runs inside the virtual machine (QEMU, Debian packages)")
    config.stash[REPORTS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order of the boots, whatever the order on the command line."""
    order = {boot.name: place for place, boot in enumerate(BOOTS)}
    items.sort(key=lambda item: order.get(guest_test.boot, 0) if (guest_test := guest_test_of(item)) else -1)


def guest_test_of(item: pytest.Item) -> GuestTest | None:
    """Return the guest's test that a pytest item stands for."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("guest_test") if callspec else None
    return found if isinstance(found, GuestTest) else None


@pytest.fixture(scope="session")
def vm_is_required(request: pytest.FixtureRequest) -> bool:
    """Whether ``--require=vm`` was given: a reason not to run is then a failure."""
    return "vm" in [name for given in request.config.getoption("--require") or [] for name in given.split(",")]


@pytest.fixture(scope="session")
def report_of(request: pytest.FixtureRequest, vm_is_required: bool) -> Callable[[str], BootReport]:
    """Boot the configuration of that name, if it has not been, and return what came of it."""
    reports = request.config.stash[REPORTS]
    boots = {boot.name: boot for boot in BOOTS}
    selected = [test for item in request.session.items if (test := guest_test_of(item))]

    def report(name: str) -> BootReport:
        if name not in reports:
            try:
                reports[name] = Rig().run(boots[name], [test for test in selected if test.boot == name])
            except Exception as error:  # kept: every test of this boot ends the same way, without another try
                reports[name] = error
        found = reports[name]
        if isinstance(found, Unavailable):
            if vm_is_required:
                pytest.fail(f"no virtual machine: {found}", pytrace=False)
            pytest.skip(f"no virtual machine: {found}")
        if isinstance(found, Exception):
            raise found
        return found

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was booted and how long it took, and what the kernel said last if it died."""
    for report in terminalreporter.config.stash[REPORTS].values():
        if isinstance(report, BootReport):
            terminalreporter.write_line(report.summary())
            if not report.results.done:
                terminalreporter.write_line(report.last_words)

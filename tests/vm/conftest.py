# SPDX-License-Identifier: MIT
"""Boots each configuration once per session, with the tests that were selected, and hands out the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from .rig.boot_run import BootRun
from .rig.boots import BOOTS
from .rig.discovery import GuestTest
from .rig.packages import QEMU
from .rig.session import Rig
from .rig.side_by_side import SideBySide, free_places, shares
from .rig.unavailable import Unavailable

RUNS = pytest.StashKey[dict[str, BootRun]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require``, unless the tests' common conftest has already."""
    try:
        parser.addoption("--require", action="append", default=[], metavar="NEED", help="fail, not skip, without NEED")
    except ValueError:
        pass


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_vm: runs inside the virtual machine (QEMU, Debian packages)")
    config.stash[RUNS] = {}


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
def boots(request: pytest.FixtureRequest) -> Iterator[SideBySide | Unavailable]:
    """Start all boots that a selected test wants; none is left when the session ends, whatever ends it."""
    selected = [test for item in request.session.items if (test := guest_test_of(item))]
    boots = SideBySide(shares(BOOTS, selected), free_places())
    try:
        rig = Rig()
    except Unavailable as reason:
        yield reason
        return
    with rig:
        try:
            boots.start(rig)
            request.config.stash[RUNS] = boots.runs
            yield boots
        finally:
            boots.close()


@pytest.fixture(scope="session")
def qemu_tree(vm_is_required: bool) -> Path:
    """QEMU, unpacked; skips where it cannot be had."""
    try:
        with Rig() as rig:
            return rig.packages.tree(QEMU)
    except Unavailable as reason:
        return _end(reason, vm_is_required)


@pytest.fixture(scope="session")
def run_of(boots: SideBySide | Unavailable, vm_is_required: bool) -> Callable[[GuestTest], BootRun]:
    """Return the run that a test is in; skips, or fails if a machine is required, where there can be none."""

    def run_of(test: GuestTest) -> BootRun:
        if isinstance(boots, Unavailable):
            _end(boots, vm_is_required)
        run = boots.run_of(test)
        if isinstance(run.failure, Unavailable):
            _end(run.failure, vm_is_required)
        return run

    return run_of


def _end(reason: Unavailable, vm_is_required: bool) -> NoReturn:
    if vm_is_required:
        pytest.fail(f"no virtual machine: {reason}", pytrace=False)
    pytest.skip(f"no virtual machine: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was booted and how long it took, and what the kernel said last if it died."""
    for run in terminalreporter.config.stash[RUNS].values():
        terminalreporter.write_line(run.summary())
        if run.last_words and not run.results.done:
            terminalreporter.write_line(run.last_words)

# SPDX-License-Identifier: MIT
"""One pytest test for each test of each guest suite in each boot: the first starts all boots, each waits for one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .rig import hosttools, qemu
from .rig.boot_run import BootRun
from .rig.boots import BOOTS
from .rig.discovery import GuestTest, discover


@pytest.mark.needs_vm
@pytest.mark.parametrize("guest_test", discover([boot.name for boot in BOOTS]), ids=str)
def test_guest(guest_test: GuestTest, run_of: Callable[[GuestTest], BootRun], vm_is_required: bool) -> None:
    outcome = run_of(guest_test).outcome(guest_test.suite, guest_test.name)
    if outcome.output:
        print(outcome.output)
    if outcome.verdict == "SKIP" and not vm_is_required:
        pytest.skip(outcome.message)
    if outcome.verdict != "PASS":
        pytest.fail(outcome.message, pytrace=False)


@pytest.mark.needs_vm
def test_a_killed_session_leaves_no_machine(qemu_tree: Path) -> None:
    """SIGKILL runs no code of ours: QEMU itself must notice."""
    command = [*hosttools.command(qemu_tree, "qemu-system-x86_64"), *qemu.LIFE, "-machine", "none", "-qmp", "stdio"]
    program = "import subprocess, sys\nwith subprocess.Popen(sys.argv[1:]) as machine: print(machine.pid, flush=True)"
    with subprocess.Popen([sys.executable, "-c", program, *command], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        lines = [session.stdout.readline(), session.stdout.readline()]  # a process id, and QEMU's greeting: it is up
        assert any("QMP" in line for line in lines), lines
        machine = os.pidfd_open(int(next(line for line in lines if "QMP" not in line)))
        try:
            session.kill()
            assert select.select([machine], [], [], 60)[0], "the machine still runs"
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(machine, signal.SIGKILL)
            os.close(machine)

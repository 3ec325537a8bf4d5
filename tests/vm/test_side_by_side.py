# SPDX-License-Identifier: MIT
"""Boots side by side, with a Python program for each machine: no QEMU, no packages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from .rig.boot_run import BootRun
from .rig.boots import BOOTS, Boot
from .rig.discovery import GuestTest
from .rig.results import Outcome
from .rig.serial import Machine
from .rig.side_by_side import Share, SideBySide, shares
from .rig.unavailable import Unavailable

CHECKOUT = Path(__file__).resolve().parents[2]
FIRST, SECOND = BOOTS[0], BOOTS[1]
GOOD = "say('RUN a', 'PASS a', 'RUN b', 'PASS b', 'DONE rc=0')"
SAY = "import sys, time\ndef say(*lines):\n    print(*lines, sep='\\n', flush=True)\nsay('SUITE s')\n"


@dataclass
class FakeRig:
    """Runs the program of each boot instead of QEMU."""

    folder: Path
    programs: dict[str, str]
    pids: dict[str, int] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0

    def prepare(self, share: Share) -> Path:
        if share.name not in self.programs:
            raise Unavailable("no kernel for it")
        return self.folder / share.name

    def boot(self, prepared: Path, run: BootRun, echo: Callable[[str], None]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        machine = Machine([sys.executable, "-c", SAY + self.programs[run.boot.name]], [], prepared, 60)
        self.pids[run.boot.name] = machine.pid
        try:
            run.machine_started(machine.kill)
            for line in machine.lines():
                run.feed(line)
                echo(line)
                if line == "RIG BREAKS":
                    raise RuntimeError("the rig broke")
        finally:
            machine.kill()
            machine.stop()
            self.at_once -= 1
        run.finish(machine.ended)


def with_tests(*boots: Boot) -> list[Share]:
    return shares(boots, [GuestTest(boot.name, "s", name) for boot in boots for name in ("a", "b")])


def test_long_suites_get_a_machine_of_their_own() -> None:
    boot = replace(FIRST, name="n", apart="long")
    tests = [GuestTest("n", suite, "t") for suite in ("a", "long", "longer", "z")] + [GuestTest("other", "a", "t")]
    dealt = shares([boot], tests)
    assert [(share.name, [test.suite for test in share.tests]) for share in dealt] == [
        ("n", ["a", "z"]),
        ("n long", ["long", "longer"]),
    ]
    assert [share.name for share in shares([boot], tests[:1])] == ["n"]
    assert [share.name for share in shares([boot], tests[1:2])] == ["n long"]
    boots = SideBySide(dealt, places=1)
    assert boots.run_of(tests[2]) is boots.runs["n long"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[SideBySide, FakeRig]]]:
    """Start a program for each boot; none runs after the test."""
    started: list[SideBySide] = []

    def start(programs: dict[str, str], places: int = 2) -> tuple[SideBySide, FakeRig]:
        boots, rig = SideBySide(with_tests(FIRST, SECOND), places), FakeRig(tmp_path, programs)
        started.append(boots)
        boots.start(rig)
        return boots, rig

    yield start
    for boots in started:
        boots.close()


def test_an_outcome_is_there_while_its_machine_still_runs(start: Callable[..., tuple[SideBySide, FakeRig]]) -> None:
    boots, _ = start({FIRST.name: "say('RUN a', 'said', 'PASS a', 'RUN b'); time.sleep(60)", SECOND.name: GOOD})
    first, second = boots.runs[FIRST.name], boots.runs[SECOND.name]
    assert first.outcome("s", "a") == Outcome("PASS", "", "said")
    assert not first.ended
    assert second.outcome("s", "b").verdict == "PASS"
    second.wait()
    assert (second.ended, second.results.done) == ("powered off", True)


@pytest.mark.parametrize("places", [1, 2])
def test_no_more_machines_than_places(places: int, start: Callable[..., tuple[SideBySide, FakeRig]]) -> None:
    meet = "say('RUN a'); time.sleep(0.3); say('PASS a', 'RUN b', 'PASS b', 'DONE rc=0')"
    boots, rig = start({FIRST.name: meet, SECOND.name: meet}, places)
    assert {run.outcome("s", "b").verdict for run in boots.runs.values()} == {"PASS"}
    assert rig.most_at_once == places


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("say('RUN a'); sys.exit(3)", "still running when the machine ended: QEMU exited with status 3"),
        ("say('RUN a'); import os; os.kill(os.getpid(), 9)", "QEMU exited with status -9"),
        ("pass", "no result from the guest: powered off"),
    ],
)
def test_a_machine_that_dies_hurts_no_other(
    program: str, message: str, start: Callable[..., tuple[SideBySide, FakeRig]]
) -> None:
    boots, _ = start({FIRST.name: program, SECOND.name: f"time.sleep(0.5); {GOOD}"})
    outcome = boots.runs[FIRST.name].outcome("s", "a")
    assert outcome.verdict == "FAIL"
    assert message in outcome.message
    assert boots.runs[SECOND.name].outcome("s", "b").verdict == "PASS"


def test_an_error_of_the_rig_ends_its_own_machine_alone(start: Callable[..., tuple[SideBySide, FakeRig]]) -> None:
    boots, rig = start({FIRST.name: "say('PASS a', 'RIG BREAKS'); time.sleep(60)", SECOND.name: GOOD})
    broken = boots.runs[FIRST.name]
    assert broken.outcome("s", "a").verdict == "PASS"
    with pytest.raises(RuntimeError, match="the rig broke"):
        broken.outcome("s", "b")
    assert boots.runs[SECOND.name].outcome("s", "b").verdict == "PASS"
    assert not is_running(rig.pids[FIRST.name])


def test_a_boot_that_cannot_be_prepared_stops_no_other(start: Callable[..., tuple[SideBySide, FakeRig]]) -> None:
    boots, _ = start({SECOND.name: GOOD})
    with pytest.raises(Unavailable, match="no kernel for it"):
        boots.runs[FIRST.name].outcome("s", "a")
    assert boots.runs[SECOND.name].outcome("s", "b").verdict == "PASS"


def test_close_ends_what_runs_and_starts_nothing_more(start: Callable[..., tuple[SideBySide, FakeRig]]) -> None:
    hang = "say('RUN a'); time.sleep(60)"
    boots, rig = start({FIRST.name: hang, SECOND.name: hang}, places=1)
    wait_until_running(boots.runs[FIRST.name])
    boots.close()
    assert list(rig.pids) == [FIRST.name]
    assert not is_running(rig.pids[FIRST.name])
    assert [run.ended for run in boots.runs.values()] == ["interrupted", "interrupted"]
    assert boots.runs[SECOND.name].outcome("s", "b").verdict == "FAIL"


def test_interrupting_pytest_leaves_no_machine(tmp_path: Path) -> None:
    """The session fixture with a machine that never ends, in a pytest of its own that gets SIGINT."""
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(CHECKOUT)!r})
        from pathlib import Path
        import pytest
        from tests.vm.test_side_by_side import FIRST, SECOND, FakeRig, with_tests
        from tests.vm.rig.side_by_side import SideBySide

        @pytest.fixture(scope="session")
        def booted():
            boots = SideBySide(with_tests(FIRST, SECOND), places=2)
            try:
                rig = FakeRig(Path({str(tmp_path)!r}), dict.fromkeys(boots.runs, "say('RUN a'); time.sleep(120)"))
                boots.start(rig)
                yield boots.runs, rig
            finally:
                boots.close()
        """)
    )
    (tmp_path / "test_hang.py").write_text(
        textwrap.dedent("""
        from tests.vm.test_side_by_side import wait_until_running

        def test_hang(booted):
            runs, rig = booted
            for run in runs.values():
                wait_until_running(run)
            print("WAITING", *rig.pids.values(), flush=True)
            next(iter(runs.values())).outcome("s", "a")
        """)
    )
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as session:
        assert session.stdout is not None
        waiting = next(line for line in session.stdout if "WAITING" in line)
        session.send_signal(signal.SIGINT)
        said = session.stdout.read()
    assert session.returncode == pytest.ExitCode.INTERRUPTED, said
    pids = [int(word) for word in waiting.split() if word.isdigit()]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def wait_until_running(run: BootRun) -> None:
    while not run.results.running and not run.ended:
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

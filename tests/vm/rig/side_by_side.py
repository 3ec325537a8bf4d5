# SPDX-License-Identifier: MIT
"""The boots of one session side by side: each in a machine of its own, as many at once as there are places.

Preparing (packages, images) is done by the caller's thread, one boot after another; a machine starts as soon as
it is prepared and a place is free, while the next is being prepared. What happens to one boot, happens to that
one alone. After `close` no machine runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from .boot_run import BootRun
from .boots import Boot
from .discovery import GuestTest
from .serial import INTERRUPTED

BYTES_OF_ONE_MACHINE = 3 << 29  # 1 GiB of guest memory, its initrd and QEMU itself
POWER_OFF_SECONDS = 30.0  # takes less than one; a guest that cannot is ended
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Share:
    """What one machine runs: a boot with all of its tests, or with some."""

    name: str
    boot: Boot
    tests: list[GuestTest]


def shares(boots: Iterable[Boot], tests: list[GuestTest]) -> list[Share]:
    """Deal ``tests`` out to machines, the longest first; no machine for a boot that none of them wants."""
    dealt = []
    for boot in boots:
        own = [test for test in tests if test.boot == boot.name]
        apart = [test for test in own if boot.apart and test.suite.startswith(boot.apart)]
        rest = [test for test in own if test not in apart]
        dealt += [Share(boot.name, boot, rest), Share(f"{boot.name} {boot.apart}", boot, apart)]
    return [share for share in dealt if share.tests]


class Boots(Protocol[Prepared]):
    """What boots: `session.Rig`."""

    def prepare(self, share: Share) -> Prepared:
        """Make all that the machine needs."""
        ...

    def boot(self, prepared: Prepared, run: BootRun, echo: Callable[[str], None]) -> None:
        """Run the machine to its end."""
        ...


def free_places() -> int:
    """Return how many machines may run at once: ``PAGEPOOL_VM_PLACES``, or one for each CPU that memory allows."""
    if given := os.environ.get("PAGEPOOL_VM_PLACES"):
        return max(1, int(given))
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return max(1, min(len(os.sched_getaffinity(0)), int(available.split()[1]) * 1024 // BYTES_OF_ONE_MACHINE))


class SideBySide:
    """Boots with the tests of each, run at once.

    Parameters
    ----------
    wanted : list of Share
        The longest first, so that it does not run alone at the end.
    places : int
        Machines that may run at once.
    echo : callable
        Gets the share's name and each line of its guest as it comes, in the thread of its machine.

    Context: one thread calls `start` and `close`; any thread reads `runs`.
    """

    def __init__(
        self,
        wanted: list[Share],
        places: int,
        echo: Callable[[str, str], None] = lambda name, line: None,
    ) -> None:
        self.runs = {share.name: BootRun(share.boot, share.name) for share in wanted}
        self._run_of = {test: self.runs[share.name] for share in wanted for test in share.tests}
        self._wanted = wanted
        self._places = threading.Semaphore(places)
        self._echo = echo
        self._threads: list[threading.Thread] = []

    def start(self, rig: Boots[Prepared]) -> None:
        """Prepare every boot and start its machine; returns when the last is prepared."""
        for share in self._wanted:
            run = self.runs[share.name]
            try:
                prepared = rig.prepare(share)
            except Exception as error:
                run.finish("never started", failure=error)
                continue
            thread = threading.Thread(target=self._run, args=(rig, prepared, run), name=f"boot {share.name}")
            self._threads.append(thread)
            thread.start()

    def run_of(self, test: GuestTest) -> BootRun:
        """Return the run that ``test`` is in."""
        return self._run_of[test]

    def close(self) -> None:
        """End every machine that has results to give, wait for those that have not, until none runs."""
        for share in self._wanted:
            run = self.runs[share.name]
            if all((test.suite, test.name) in run.results.outcomes for test in share.tests):
                run.wait(POWER_OFF_SECONDS)
            run.stop()
        for thread in self._threads:
            thread.join()

    def _run(self, rig: Boots[Prepared], prepared: Prepared, run: BootRun) -> None:
        try:
            with self._places:
                if not run.stopping:
                    rig.boot(prepared, run, lambda line: self._echo(run.name, line))
        except Exception as error:
            run.finish("lost", failure=error)
        finally:
            if not run.ended:
                run.finish(INTERRUPTED)

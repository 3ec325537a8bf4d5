# SPDX-License-Identifier: MIT
"""Drain rings that were filled before, by one thread or by two: what a second thread is worth with no sender beside.

On a machine of two CPUs a sender would take one of them, and what is measured would be the sender. So the rx rings of
two queues are filled to the brim, the clock starts, and stops when both are empty. Each way is timed in turns.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.case import Spread, spread
from benchmarks.quiet import real_time

__all__ = ["Drained", "Way", "drain_in_turns"]


_Plan = tuple[tuple[int, tuple[int, ...]], ...]  # for each thread its CPU and its queues


@dataclass
class Drained:
    """What the rounds of one row gave, one number each.

    Attributes
    ----------
    kpps : list of float
        Thousand frames a second, of both queues together.
    got : list of float
        Received of sent, 0 to 1, where frames are sent meanwhile.
    cpu_ns : list of float
        CPU time per frame of all threads, the kernel's work in their system calls included.
    speedup : list of float
        Against the same by one thread, in the same round.
    """

    name: str
    kpps: list[float] = field(default_factory=list)
    got: list[float] = field(default_factory=list)
    cpu_ns: list[float] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)

    @property
    def spread(self) -> Spread:
        """Spread : of `kpps`."""
        return spread(self.kpps)


@dataclass(frozen=True)
class Way:
    """One thing to do with the frames.

    Attributes
    ----------
    name : str
        For the table.
    fill : callable
        Fills both rings; returns the frames of each.
    drain : callable
        ``drain(queue_number, frames)``, in a thread that becomes the owner.
    """

    name: str
    fill: Callable[[], int]
    drain: Callable[[int, int], None]


def drain_in_turns(
    ways: Sequence[Way], rounds: int, cpus: tuple[int, int], progress: Callable[[str], None]
) -> list[Drained]:
    """Time every way in every round, by one thread and by two, each thread on a CPU of its own."""
    plans: tuple[_Plan, _Plan] = (((cpus[1], (0, 1)),), ((cpus[0], (0,)), (cpus[1], (1,))))
    found = [(Drained(f"{way.name}, 1 thread"), Drained(f"{way.name}, 2 threads")) for way in ways]
    for number in range(rounds):
        progress(f"drained rings: round {number + 1} of {rounds}")
        for way, rows in zip(ways, found, strict=True):
            times = []
            for row, plan in zip(rows, plans, strict=True):
                frames = way.fill()
                took_s, cpu_s = _time(way, frames, plan)
                times.append(took_s)
                row.kpps.append(2 * frames / took_s / 1e3)
                row.cpu_ns.append(1e9 * cpu_s / (2 * frames))
                row.speedup.append(times[0] / took_s)
    return [row for rows in found for row in rows]


def _time(way: Way, frames: int, plan: _Plan) -> tuple[float, float]:
    """Run one thread for each of `plan` (its CPU, its queues); return wall and CPU seconds."""
    begin = threading.Barrier(len(plan))
    spans: list[tuple[float, float, float]] = []

    def work(cpu: int, queues: Sequence[int]) -> None:
        os.sched_setaffinity(0, {cpu})
        with real_time(1):
            begin.wait()
            start, used = time.perf_counter(), time.thread_time()
            for queue in queues:
                way.drain(queue, frames)
            used = time.thread_time() - used
            spans.append((start, time.perf_counter(), used))

    threads = [threading.Thread(target=work, args=one) for one in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(spans) < len(plan):
        raise RuntimeError("a draining thread failed")
    return max(end for _, end, _ in spans) - min(start for start, _, _ in spans), sum(used for _, _, used in spans)

# SPDX-License-Identifier: MIT
"""Run queue threads for a while: frames a second, and the CPU time that a frame takes.

The CPU time is what two threads on two queues can spoil for one another; the rate is that and whatever else the CPUs
have to do. Receivers run before senders, and both before the rest of the machine, where that is allowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quiet import rank, real_time
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.drivers.rx_queue import RxQueue
from pagepool.testing.generator import Generator
from pagepool.xdp import XdpBatch

__all__ = ["Metered", "run_metered"]

_SENDER, _RECEIVER, _WATCH = 1, 2, 3  # real-time priorities
_WARM_S = 0.1


@dataclass(frozen=True)
class Metered:
    """What one run gave.

    Attributes
    ----------
    frames : int
        Of all queues, in `seconds`.
    sent : int
        By all senders, meanwhile; 0 where there are none.
    cpu_s : float
        CPU seconds of all receiving threads meanwhile, the kernel's work in their system calls included.
    """

    frames: int
    sent: int
    seconds: float
    cpu_s: float

    @property
    def kpps(self) -> float:
        return self.frames / self.seconds / 1e3

    @property
    def cpu_ns(self) -> float:
        return 1e9 * self.cpu_s / max(self.frames, 1)


def run_metered(
    queues: Sequence[RxQueue],
    handler: Callable[[XdpBatch], object],
    *,
    budget: int,
    seconds: float,
    cpus: Sequence[int],
    senders: Sequence[Generator] = (),
) -> Metered:
    """Run `queues` by as many threads as there are `cpus`, each on its own, and read the meters after a short while.

    Notes
    -----
    Senders run from before the first thread until after the last, each where it is pinned.
    """
    running = QueueThreads(queues, handler, threads=len(cpus), cpus=cpus, budget=budget)
    with real_time(_WATCH), ExitStack() as stack:
        for sender in senders:
            stack.callback(sender.stop)
            _start(sender.start, _SENDER)
        stack.callback(running.join)
        stack.callback(running.stop)
        threads = _start(running.start, _RECEIVER)
        time.sleep(_WARM_S)
        start, before = time.perf_counter(), _read(running, senders, threads)
        time.sleep(seconds)
        took, after = time.perf_counter() - start, _read(running, senders, threads)
    return Metered(after[0] - before[0], after[1] - before[1], took, after[2] - before[2])


def _start(start: Callable[[], object], priority: int) -> list[threading.Thread]:
    """Start threads, and then say how urgent they are: less than the caller, who must get a CPU to stop them."""
    before = set(threading.enumerate())
    start()
    threads = [thread for thread in threading.enumerate() if thread not in before]
    rank(threads, priority)
    return threads


def _read(
    running: QueueThreads, senders: Sequence[Generator], threads: Sequence[threading.Thread]
) -> tuple[int, int, float]:
    """Return frames received and sent, and CPU seconds of threads that live; proc(5), ``/proc/[pid]/schedstat``."""
    spent = (Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0] for thread in threads)
    return running.frames, sum(sender.sent for sender in senders), sum(map(int, spent)) / 1e9

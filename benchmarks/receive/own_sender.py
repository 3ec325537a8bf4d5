# SPDX-License-Identifier: MIT
"""Receive on one queue and on two, each with a sender of its own on the CPU of its own thread.

On veth the sender's CPU does the device's work and decides the queue. So each queue brings its CPU, its traffic and its
thread, and a second one doubles all three: what more there is to receive is what the process itself does not hinder.
Sender and receiver share a CPU; what they cannot both have is lost, and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.receive.drained import Drained
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.testing.generator import Generator
from pagepool.xdp import XdpBatch

__all__ = ["receive_in_turns"]

_WARM_S = 0.1


def receive_in_turns(
    queues: Sequence[AfXdpQueue],
    senders: Sequence[Generator],
    handler: Callable[[XdpBatch], object],
    budgets: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    cpus: tuple[int, int],
    progress: Callable[[str], None],
) -> list[Drained]:
    """Receive for `seconds` with every budget, on one queue and on both, `rounds` times in turns.

    Parameters
    ----------
    queues, senders, cpus
        Two each; sender `i` is pinned to CPU `i`, whose frames come to queue `i`.
    """
    names = ("1 queue", "2 queues")
    found = {budget: [Drained(f"live frames, NumPy verdict {budget}, {name}") for name in names] for budget in budgets}
    for number in range(rounds):
        progress(f"live frames: round {number + 1} of {rounds}")
        for budget, rows in found.items():
            for row, n in zip(rows, (1, 2), strict=True):
                row.kpps.append(_kpps(queues[:n], senders[:n], handler, budget, seconds, cpus[:n]))
                row.speedup.append(row.kpps[-1] / rows[0].kpps[-1])
    return [row for rows in found.values() for row in rows]


def _kpps(
    queues: Sequence[AfXdpQueue],
    senders: Sequence[Generator],
    handler: Callable[[XdpBatch], object],
    budget: int,
    seconds: float,
    cpus: Sequence[int],
) -> float:
    for sender in senders:
        sender.start()
    try:
        with QueueThreads(queues, handler, cpus=cpus, budget=budget) as threads:
            time.sleep(_WARM_S)
            start, before = time.perf_counter(), threads.frames
            time.sleep(seconds)
            return (threads.frames - before) / (time.perf_counter() - start) / 1e3
    finally:
        for sender in senders:
            sender.stop()

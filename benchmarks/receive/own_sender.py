# SPDX-License-Identifier: MIT
"""Receive on one queue and on two, each with a sender of its own on the CPU of its own thread.

On veth the sender's CPU does the device's work and decides the queue. So each queue brings its CPU, its traffic and its
thread, and a second one doubles all three: what more there is to receive is what the process itself does not hinder.

Sender and receiver share a CPU. Which of them runs must not be the scheduler's to say, else its time slices are what is
measured: a sender that goes on when the ring is full drops what the receiver, asleep once it has caught up, could have
had. The receiver runs first whenever there is a frame, so none is lost, and a frame costs what the two take for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.receive.drained import Drained
from benchmarks.receive.metered import run_metered
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.testing.generator import Generator
from pagepool.xdp import XdpBatch

__all__ = ["receive_in_turns"]


def receive_in_turns(
    queues: Sequence[AfXdpQueue],
    senders: Sequence[Generator],
    handler: Callable[[XdpBatch], object],
    budgets: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    cpus: Sequence[int],
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
            alone = slice(number % 2, number % 2 + 1)  # one queue, of one CPU and of the other by turns
            for row, chosen in zip(rows, (alone, slice(2)), strict=True):
                meter = run_metered(
                    queues[chosen],
                    handler,
                    budget=budget,
                    seconds=seconds,
                    cpus=cpus[chosen],
                    senders=senders[chosen],
                )
                row.kpps.append(meter.kpps)
                row.cpu_ns.append(meter.cpu_ns)
                row.got.append(meter.frames / max(meter.sent, 1))
                row.speedup.append(meter.kpps / rows[0].kpps[-1])
    return [row for rows in found.values() for row in rows]

# SPDX-License-Identifier: MIT
"""Run receivers against a generator on one veth pair, one after the other, several times over.

The generator and the device's softirq share the sender's CPU (veth delivers inline), the receiver has another.
A rate is frames that the receiver counted over the time that the generator was sending.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.case import Spread, spread
from benchmarks.peers.build import PeerError
from pagepool.testing.generator import Generator
from pagepool.testing.veth import VethPair

__all__ = ["Received", "Receiver", "python_receiver", "rate_ratio", "run_passes"]

_READY_S = 20.0
_SETTLE_S = 0.1


@dataclass(frozen=True)
class Receiver:
    """A program and what it is called; the interface's name goes where ``{}`` stands."""

    name: str
    command: tuple[str, ...]


def python_receiver(name: str) -> Receiver:
    """Return one of `benchmarks.receive.receivers`."""
    return Receiver(name, (sys.executable, "-m", "benchmarks.receive.receivers", name, "{}"))


@dataclass
class Received:
    """What the passes of one receiver gave, one number each.

    Attributes
    ----------
    kpps : list of float
        Thousand frames a second received.
    offered_kpps : list of float
        Thousand frames a second sent meanwhile.
    got : list of float
        Received of sent, 0 to 1.
    cpu_ns : list of float
        Nanoseconds of the receiver's CPU time per frame received, its share of the kernel's work included.
    sender_ns : list of float
        Nanoseconds of the generator's CPU time per frame sent, delivery included: where this is the inverse of the
        rate, the sender's side is the limit, and the receiver only in so far as it makes delivery dearer.
    copied : int
        Frames that a bridge says it copied, in all passes.
    """

    name: str
    generator: str
    kpps: list[float] = field(default_factory=list)
    offered_kpps: list[float] = field(default_factory=list)
    got: list[float] = field(default_factory=list)
    cpu_ns: list[float] = field(default_factory=list)
    sender_ns: list[float] = field(default_factory=list)
    copied: int = 0

    @property
    def spread(self) -> Spread:
        """Spread : of `kpps`."""
        return spread(self.kpps)


def rate_ratio(over: Received, under: Received) -> Spread:
    """Return how many frames `over` received for one of `under`, pass by pass."""
    return spread([a / max(b, 1e-9) for a, b in zip(over.kpps, under.kpps, strict=True)])


def run_passes(
    pair: VethPair,
    generator: Generator,
    receivers: Sequence[Receiver],
    *,
    generator_name: str,
    passes: int,
    seconds: float,
    chunk_frames: int,
    cpu: int,
    progress: Callable[[str], None],
    arrived: Callable[[], int] | None = None,
) -> list[Received]:
    """Run every receiver `passes` times for `seconds`, in turns.

    Parameters
    ----------
    chunk_frames : int
        Frames to send before the clock is looked at.
    cpu : int
        Where the receivers run.
    arrived : callable, optional
        Says how many frames have come out at the end of the wire, for programs that send them on; by default the
        programs are asked.

    Raises
    ------
    PeerError
        A receiver does not start.
    """
    found = [Received(receiver.name, generator_name) for receiver in receivers]
    for _ in range(passes):
        for receiver, received in zip(receivers, found, strict=True):
            progress(f"{generator_name}: {receiver.name}")
            _run_one(
                pair,
                generator,
                receiver,
                received,
                seconds=seconds,
                chunk_frames=chunk_frames,
                cpu=cpu,
                arrived=arrived,
            )
    return found


def _run_one(
    pair: VethPair,
    generator: Generator,
    receiver: Receiver,
    received: Received,
    *,
    seconds: float,
    chunk_frames: int,
    cpu: int,
    arrived: Callable[[], int] | None,
) -> None:
    process = _start(pair, receiver, cpu)
    before = arrived() if arrived is not None else 0
    try:
        start, sent, sender = time.monotonic(), 0, time.thread_time()
        while (took := time.monotonic() - start) < seconds:
            sent += generator.send(chunk_frames)
        sender = time.thread_time() - sender
        time.sleep(_SETTLE_S)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=_READY_S)
        answer = json.loads(said)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    frames = arrived() - before if arrived is not None else int(answer["frames"])
    received.copied += int(answer.get("copied", 0))
    received.kpps.append(frames / took / 1e3)
    received.offered_kpps.append(sent / took / 1e3)
    received.got.append(frames / sent)
    received.sender_ns.append(1e9 * sender / sent)
    received.cpu_ns.append(1e9 * float(answer["cpu_s"]) / max(frames, 1))


def _start(pair: VethPair, receiver: Receiver, cpu: int) -> subprocess.Popen[str]:
    """Start a receiver in the near namespace and wait until it receives."""
    command = [part.format(pair.near.ifname) for part in receiver.command]
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})  # inherited, threads and all
    try:
        with pair.near.ns:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
    finally:
        os.sched_setaffinity(0, affinity)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _READY_S)
    if not ready or process.stdout.readline() != "ready\n":
        process.kill()
        _, complaint = process.communicate()
        raise PeerError(f"{receiver.name} does not start: {complaint.strip()[-400:]}")
    return process

# SPDX-License-Identifier: MIT
"""The figures of one AF_XDP queue, from the pool to the kernel's socket, of one moment. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pagepool._core.stats import PoolStats
from pagepool.drivers.af_xdp.queue_parts import QueueParts
from pagepool.drivers.af_xdp.socket import XdpStatistics
from pagepool.drivers.af_xdp.steering import SteeringCounters
from pagepool.napi import NapiStats
from pagepool.xdp import XdpStats

__all__ = ["AfXdpStats", "RingStats", "collect"]


@dataclass(frozen=True, slots=True)
class RingStats:
    """What went through the rings.

    Attributes
    ----------
    rx_frames, tx_frames, tx_completed : int
        Frames taken from the rx ring, put into the tx ring, and whose pages came home.
    nr_fill, nr_rx, nr_tx_queued, nr_tx_outstanding : int
        Entries now: pages waiting for frames, frames waiting for a poll, frames waiting for the kernel, and
        frames whose pages are not home yet.
    rx_kicks, tx_kicks : int
        System calls.
    fill_short : int
        Polls that found too few pages in the pool to fill up.
    bad_descriptors : int
        Descriptors of the kernel's that named no page it had; never used.
    pass_errors, copied : int
        Frames that the stack did not take; frames redirected here from another arena.
    """

    rx_frames: int
    tx_frames: int
    tx_completed: int
    nr_fill: int
    nr_rx: int
    nr_tx_queued: int
    nr_tx_outstanding: int
    rx_kicks: int
    tx_kicks: int
    fill_short: int
    bad_descriptors: int
    pass_errors: int
    copied: int


@dataclass(frozen=True, slots=True)
class AfXdpStats:
    """Everything about one queue.

    Attributes
    ----------
    mode : {"native", "generic"}
        Where the XDP program is.
    zerocopy : bool
        Whether the device itself reads and writes the pages.
    memory : str
        What the pages are made of, in words.
    """

    name: str
    queue: int
    mode: str
    zerocopy: bool
    memory: str
    pool: PoolStats
    rings: RingStats
    xdp: XdpStats
    napi: NapiStats
    socket: XdpStatistics
    steering: SteeringCounters

    def as_dict(self) -> dict[str, Any]:
        """Return nested dictionaries, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("name", "queue", "mode", "zerocopy", "memory")},
            **{name: asdict(getattr(self, name)) for name in ("pool", "rings", "xdp", "napi", "socket", "steering")},
        }


def collect(name: str, parts: QueueParts, xdp: XdpStats, napi: NapiStats) -> AfXdpStats:
    """Gather the figures of an open queue. Context: any thread; a few system calls."""
    rings, egress = parts.rings, parts.egress
    return AfXdpStats(
        name=name,
        queue=parts.queue,
        mode=parts.steering.mode,
        zerocopy=parts.is_zerocopy,
        memory=parts.area.allocator.describe(),
        pool=parts.pool.stats(),
        rings=RingStats(
            rx_frames=rings.rx_frames,
            tx_frames=rings.tx_frames,
            tx_completed=rings.tx_completed,
            nr_fill=rings.nr_fill,
            nr_rx=rings.nr_rx,
            nr_tx_queued=rings.nr_tx_queued,
            nr_tx_outstanding=rings.nr_tx_outstanding,
            rx_kicks=rings.rx_kicks,
            tx_kicks=rings.tx_kicks,
            fill_short=rings.fill_short,
            bad_descriptors=rings.bad_descriptors,
            pass_errors=egress.pass_errors,
            copied=egress.copied,
        ),
        xdp=replace(xdp),
        napi=replace(napi),
        socket=parts.socket.statistics(),
        steering=parts.steering.counters(),
    )

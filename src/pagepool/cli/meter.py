# SPDX-License-Identifier: MIT
"""What the pools and queues say at one moment, as frozen figures, and the rates between two moments.

It samples and prints nothing; taking a sample changes nothing. Invariant: the figures of one sample were read within
a millisecond or so, while other threads went on; each is exact, together they may be a batch apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pagepool import PoolStats
from pagepool.cli.tap import Tap
from pagepool.cli.wire import Wire
from pagepool.drivers.rx_queue import RxQueue

__all__ = ["Meter", "QueueSample", "Rates", "Sample", "rates"]


@dataclass(frozen=True, slots=True)
class QueueSample:
    """One queue and its pool.

    Attributes
    ----------
    frames, size_bytes : int
        Received so far; bytes without the frame check sequence.
    lost : int
        Frames that arrived while the device had no free page, or no room in its ring.
    at_device : int
        Pages that the device has, also those of other queues' pools that are sent here.
    pool_id : int
    pool : PoolStats
    forwarded, refused : int
        Frames that were taken for sending, by this queue or another, and frames that were to be and found no room.
    copied : int
        Frames of other queues that were copied to be sent here.
    """

    name: str
    queue: int
    frames: int
    size_bytes: int
    lost: int
    at_device: int
    pool_id: int
    pool: PoolStats
    forwarded: int = 0
    refused: int = 0
    copied: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; the kernel's counters have netlink's spelling."""
        return {
            "name": self.name,
            "queue": self.queue,
            "frames": self.frames,
            "bytes": self.size_bytes,
            "lost": self.lost,
            "forwarded": self.forwarded,
            "refused": self.refused,
            "copied": self.copied,
            "at-device": self.at_device,
            "page-pool": {
                "id": self.pool_id,
                "inflight": self.pool.inflight,
                "inflight-mem": self.pool.inflight * self.pool.object_bytes,
                **self.pool.kernel(),
            },
            "exact": {
                "cached": self.pool.in_cache,
                "ringed": self.pool.in_ring,
                "lent": self.pool.lent,
                "allocated": self.pool.allocated,
                "fresh": self.pool.fresh,
                "recycled": self.pool.recycled,
                "high-water": self.pool.high_water,
                "maps": self.pool.maps,
                "unmaps": self.pool.unmaps,
            },
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """All queues at one moment.

    Attributes
    ----------
    at_s : float
        Seconds since the start.
    queues : tuple of QueueSample
    sent : int or None
        Frames that our own generator has sent, None where the traffic is not ours.
    maps : int
        Mapping calls to the devices; queues that share memory share them.
    memory_bytes : int
        Memory that the pools' page allocators have committed.
    memory : str
        What it is made of.
    """

    at_s: float
    queues: tuple[QueueSample, ...]
    sent: int | None
    maps: int
    memory_bytes: int
    memory: str

    def total(self, name: str) -> int:
        """Return the sum of a figure of the queues or of their pools, by its name."""
        source = "pool" if name in PoolStats.__slots__ else None
        return sum(int(getattr(queue.pool if source else queue, name)) for queue in self.queues)

    @property
    def allocator_calls(self) -> int:
        """int : how often the pools called the page allocator."""
        return self.total("slow") + self.total("slow_high_order")

    @property
    def recycle_ratio(self) -> float:
        """float : share of the pages handed out that did not come fresh from the allocator, 0 to 1."""
        allocated = self.total("allocated")
        return 1.0 - min(1.0, self.total("fresh") / allocated) if allocated else 0.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Between two samples, all per second."""

    packets: float
    bits: float
    lost: float
    fast: float
    refill: float
    slow: float
    maps: float


def rates(before: Sample, now: Sample) -> Rates:
    """Return the rates between two samples."""
    span = max(now.at_s - before.at_s, 1e-9)

    def rate(name: str) -> float:
        return max(now.total(name) - before.total(name), 0) / span

    return Rates(
        packets=rate("frames"),
        bits=8 * rate("size_bytes"),
        lost=rate("lost"),
        fast=rate("fast"),
        refill=rate("refill"),
        slow=rate("slow") + rate("slow_high_order"),
        maps=max(now.maps - before.maps, 0) / span,
    )


class Meter:
    """Samples a wire's queues.

    Parameters
    ----------
    wire : Wire
        Open.
    taps : list of Tap
        One per queue, in the wire's order.
    """

    def __init__(self, wire: Wire, taps: list[Tap]) -> None:
        self._wire = wire
        self._taps = taps
        self._start = time.monotonic()

    def sample(self) -> Sample:
        """Return the figures of this moment. Context: any thread."""
        now = time.monotonic() - self._start
        opened = self._wire.queues
        queues = tuple(self._look(queue, tap) for queue, tap in zip(opened, self._taps, strict=True))
        pools = [queue.pool for queue in opened]
        mappings: dict[tuple[int, int], int] = {}
        for pool, seen in zip(pools, queues, strict=True):
            key = (id(pool.arena), id(pool.params.dev))
            mappings[key] = max(mappings.get(key, 0), seen.pool.maps)
        allocators = {id(pool.memory): pool.memory for pool in pools}
        return Sample(
            at_s=now,
            queues=queues,
            sent=self._wire.sent(),
            maps=sum(mappings.values()),
            memory_bytes=sum(allocator.committed_bytes for allocator in allocators.values()),
            memory=", ".join(dict.fromkeys(allocator.describe() for allocator in allocators.values())),
        )

    def _look(self, queue: RxQueue, tap: Tap) -> QueueSample:
        pool = queue.pool.stats()
        at_device, lost = self._wire.look(queue)
        xdp = queue.xdp_stats
        refused = xdp.tx_dropped + xdp.redirect_dropped
        return QueueSample(
            name=queue.name,
            queue=queue.queue,
            frames=tap.frames,
            size_bytes=tap.size_bytes,
            lost=lost,
            at_device=at_device,
            pool_id=queue.pool.id,
            pool=pool,
            forwarded=xdp.tx + xdp.redirect - refused,
            refused=refused,
            copied=queue.copied,
        )

# SPDX-License-Identifier: MIT
"""Forward Ethernet frames between two interfaces, both ways, by the ids of their pages.

A wire with a program in it: what comes in on one side goes out on the other. It learns no stations and answers nobody.
A page goes rx ring -> batch -> the other side's tx ring -> completion -> its own pool; where both sides have one
memory no byte of it is touched. Invariant: a frame is sent by the other side, or counted as dropped, and its page comes
home either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pagepool.drivers.queue_threads import Handler, run_queues
from pagepool.drivers.rx_queue import RxQueue
from pagepool.napi import NAPI_POLL_WEIGHT
from pagepool.xdp import XdpBatch

__all__ = ["Bridge", "BridgeStats", "Forwarded"]


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What one direction did, of completed batches.

    Attributes
    ----------
    received, forwarded : int
        Frames that came in, and frames that the other side took for sending.
    refused : int
        Frames dropped because the other side had no room in its tx ring, or is closed: the backpressure.
    judged : int
        Frames that `judge` gave another verdict.
    copied : int
        Of those forwarded, how many were copied, for the sides do not share memory.
    """

    received: int
    forwarded: int
    refused: int
    judged: int
    copied: int


@dataclass(frozen=True, slots=True)
class BridgeStats:
    """Both directions."""

    a_to_b: Forwarded
    b_to_a: Forwarded

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return nested dictionaries, for JSON."""
        return asdict(self)


class Bridge:
    """Join two sides.

    Parameters
    ----------
    a, b : RxQueue or sequence of RxQueue
        Open queues of either side, of any driver; they stay the caller's. Queue ``i`` of a side sends to queue ``i`` of
        the other, modulo its number. To forward without a copy both sides share memory
        (`pagepool.drivers.af_xdp.open_queues` with both interfaces, or ``share_umem_with``).
    judge : callable, optional
        ``judge(batch)``, called when every frame's verdict is to be forwarded: it may give others
        (``batch.drop(mask)``), and see every frame that passes.

    Attributes
    ----------
    queues : list of RxQueue
        All of them, side a first.
    handlers : list of callable
        What to do with a batch of each, for `QueueThreads`.

    Notes
    -----
    On a NIC, open the queues with ``promiscuous=True``, or only frames for its own station come in.

    Context: see `poll` and `run`; `stats` from any thread.
    """

    def __init__(
        self,
        a: RxQueue | Sequence[RxQueue],
        b: RxQueue | Sequence[RxQueue],
        judge: Callable[[XdpBatch], object] | None = None,
    ) -> None:
        self._a, self._b = _side(a), _side(b)
        if not self._a or not self._b:
            raise ValueError("a bridge needs a queue on either side")
        self.queues = self._a + self._b
        if len({id(queue) for queue in self.queues}) < len(self.queues):
            raise ValueError("a queue is on both sides of the bridge, or twice on one")
        self.handlers: list[Handler] = []
        for side, other in ((self._a, self._b), (self._b, self._a)):
            for number, _ in enumerate(side):
                self.handlers.append(partial(_forward, other[number % len(other)], judge))

    def poll(self, budget: int = NAPI_POLL_WEIGHT) -> int:
        """Poll every queue once and forward what came.

        Returns
        -------
        int
            Frames received; 0 does not mean that none will come.

        Raises
        ------
        DeviceError
            An interface is gone.

        Notes
        -----
        Context: the owner of all queues; one thread does both directions. Does not sleep.
        """
        frames = 0
        for queue, handler in zip(self.queues, self.handlers, strict=True):
            batch = queue.poll(budget)
            if batch is not None:
                with batch:
                    frames += len(batch)
                    handler(batch)
        return frames

    def run(
        self,
        seconds: float | None = None,
        *,
        threads: int | None = None,
        cpus: Sequence[int] | None = None,
        budget: int = NAPI_POLL_WEIGHT,
        busy_poll_us: float = 0.0,
    ) -> int:
        """Forward until the time is up, an exception, or Ctrl-C; threads that sleep without frames.

        Parameters are those of `QueueThreads`, in the order of `queues`; returns the frames received.

        Raises
        ------
        DeviceError
            An interface is gone.
        BaseException
            What `judge` raised.
        """
        how: dict[str, Any] = {"threads": threads, "cpus": cpus, "budget": budget, "busy_poll_us": busy_poll_us}
        return run_queues(self.queues, self.handlers, seconds=seconds, **how)

    def stats(self) -> BridgeStats:
        """Return the figures of this moment."""
        return BridgeStats(_forwarded(self._a, self._b), _forwarded(self._b, self._a))

    def __repr__(self) -> str:
        sides = (", ".join(f"{queue.name} queue {queue.queue}" for queue in side) for side in (self._a, self._b))
        return f"<Bridge {' - '.join(sides)}>"


def _side(queues: RxQueue | Iterable[RxQueue]) -> list[RxQueue]:
    return [queues] if isinstance(queues, RxQueue) else list(queues)


def _forward(target: RxQueue, judge: Callable[[XdpBatch], object] | None, batch: XdpBatch) -> None:
    batch.redirect(target)
    if judge is not None:
        judge(batch)


def _forwarded(sources: list[RxQueue], targets: list[RxQueue]) -> Forwarded:
    stats = [queue.xdp_stats for queue in sources]
    received = sum(one.rx_frames for one in stats)
    redirected = sum(one.redirect for one in stats)
    refused = sum(one.redirect_dropped for one in stats)
    return Forwarded(
        received=received,
        forwarded=redirected - refused,
        refused=refused,
        judged=max(received - redirected, 0),
        copied=sum(queue.copied for queue in targets),
    )

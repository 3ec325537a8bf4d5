# SPDX-License-Identifier: MIT
"""``--forward``: two interfaces as the two ends of a wire, and what went through it each way.

The forwarding is `pagepool.drivers.bridge`; here it is a wire like the others, and its figures. Invariant: what a
direction forwarded and what it refused are what it received, once the last batch is completed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pagepool.cli.tap import Verdict
from pagepool.cli.wire import Interface, Wire, WireOptions
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.rx_queue import RxQueue

if TYPE_CHECKING:
    from pagepool.cli.meter import Sample

__all__ = ["Direction", "Forwarding", "directions"]


class Forwarding(Interface):
    """The queues of two interfaces over one memory, all of them unless told otherwise; promiscuous."""

    def __init__(self, ifname: str, other: str, options: WireOptions) -> None:
        super().__init__((ifname, other), replace(options, promiscuous=True))
        self.directions = ((ifname, other), (other, ifname))
        self._verdicts: dict[int, Verdict] = {}

    def _open(self, undo: ExitStack) -> None:
        super()._open(undo)
        here, there = ([queue for queue in self.queues if queue.name == ifname] for ifname in self.ifnames)
        bridge = Bridge(here, there)
        self._verdicts = {id(queue): verdict for queue, verdict in zip(bridge.queues, bridge.handlers, strict=True)}

    def verdict(self, queue: RxQueue) -> Verdict:
        return self._verdicts[id(queue)]


@dataclass(frozen=True, slots=True)
class Direction:
    """One way through the wire; frames."""

    source: str
    target: str
    received: int
    forwarded: int
    refused: int
    copied: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def directions(wire: Wire, sample: Sample) -> list[Direction]:
    """Return what went each way by the time of a sample; nothing where the wire forwards nothing."""
    found = []
    for source, target in wire.directions:
        here = [queue for queue in sample.queues if queue.name == source]
        there = [queue for queue in sample.queues if queue.name == target]
        found.append(
            Direction(
                source=source,
                target=target,
                received=sum(queue.frames for queue in here),
                forwarded=sum(queue.forwarded for queue in here),
                refused=sum(queue.refused for queue in here),
                copied=sum(queue.copied for queue in there),
            )
        )
    return found

# SPDX-License-Identifier: MIT
"""A NIC in software: a wire with a source at one end, RSS, and a queue pair for each hardware queue.

The device, not its driver: `LoopbackQueue` drives one of its queues. It needs no privilege and no kernel
feature. Invariant: a frame taken from the source or injected is written to one queue or counted as dropped
there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pagepool.drivers.loopback.port import PortPair
from pagepool.drivers.loopback.rss import rss_hash
from pagepool.drivers.loopback.sinks import as_sink
from pagepool.drivers.loopback.sources import FrameBlock, FrameSource, as_source, block_of

if TYPE_CHECKING:
    from pagepool.drivers.loopback.queue import LoopbackQueue

__all__ = ["LoopbackNic"]

_BURST = 64
_TABLE_SIZE = 128  # entries of the RSS indirection table, as most NICs have


class LoopbackNic:
    """A software NIC.

    Parameters
    ----------
    queues : int
        Hardware queues, 1 to 128.
    source : FrameSource, iterable of bytes, path of a capture file, or None
        What comes over the wire. Queues that are polled pull from it as fast as they can take; `step`
        delivers by number.
    wire : list, callable, PcapngWriter, LoopbackNic or None
        Where sent frames go, see `as_sink`.
    name : str
        Interface name.
    rx_ring, tx_ring : int
        Descriptors per ring, powers of two from 8 to 32768.

    Attributes
    ----------
    ports : list of PortPair
        The device side of each queue.
    pull : bool
        Whether a poll of an empty queue takes frames from the source; False leaves it to `step`.
    exhausted : bool
        The source has ended.

    Context: any thread.
    """

    def __init__(
        self,
        queues: int = 1,
        source: Any = None,
        *,
        wire: Any = None,
        name: str = "loop0",
        rx_ring: int = 256,
        tx_ring: int = 256,
    ) -> None:
        if not 1 <= queues <= _TABLE_SIZE:
            raise ValueError(f"queues {queues} is out of range: 1 to {_TABLE_SIZE}")
        self.name = name
        self.source: FrameSource | None = None if source is None else as_source(source)
        self.exhausted = self.source is None
        self.pull = True
        sink = as_sink(wire, outbound=True)
        self.ports = [PortPair(rx_ring, tx_ring, sink) for _ in range(queues)]
        self._queues: dict[int, LoopbackQueue] = {}
        self._table = np.arange(_TABLE_SIZE) % queues
        self._lock = threading.RLock()  # a source may be a generator that looks at this NIC

    @property
    def has_more(self) -> bool:
        """bool : whether a queue that polls may get more from the source."""
        return self.pull and not self.exhausted

    def __repr__(self) -> str:
        return f"<LoopbackNic {self.name}, {len(self.ports)} queues>"

    def queue(self, index: int, **options: Any) -> LoopbackQueue:
        """Open queue `index`; options as of `LoopbackQueue`."""
        from pagepool.drivers.loopback.queue import LoopbackQueue

        return LoopbackQueue(nic=self, queue=index, **options)

    def step(self, n: int) -> int:
        """Let exactly `n` frames come over the wire, or all that are left.

        Returns
        -------
        int
            How many reached a queue; the others were dropped there and counted.
        """
        taken = delivered = 0
        with self._lock:
            while taken < n and (block := self._take(min(n - taken, 4 * _BURST))) is not None:
                taken += len(block.lengths)
                delivered += self._deliver(block)
        return delivered

    def inject(self, frames: Iterable[bytes]) -> int:
        """Let these frames come over the wire, besides the source; return how many reached a queue."""
        every = list(frames)
        return self._deliver(block_of(every)) if every else 0

    def feed(self, n: int) -> int:
        """Let up to `n` frames come, for a queue that has nothing to do.

        Return how many reached any queue.
        """
        # Taken and delivered under one lock: whoever sees `exhausted` knows that every frame is where it belongs.
        with self._lock:
            block = self._take(n) if self.pull else None
            return 0 if block is None else self._deliver(block)

    def close(self) -> None:
        """Close every queue that is open. Idempotent."""
        for queue in list(self._queues.values()):
            queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # For the driver.

    def attach(self, index: int, queue: LoopbackQueue) -> PortPair:
        """Bind a driver to a queue, as opening it does.

        Raises
        ------
        ValueError
            There is no such queue, or it is open already.
        """
        if not 0 <= index < len(self.ports):
            raise ValueError(f"{self!r} has no queue {index}")
        with self._lock:
            if index in self._queues:
                raise ValueError(f"{self.name} queue {index} is open already")
            self._queues[index] = queue
        return self.ports[index]

    def detach(self, index: int) -> None:
        """Undo `attach`."""
        with self._lock:
            self._queues.pop(index, None)

    def _take(self, n: int) -> FrameBlock | None:
        if self.exhausted or self.source is None:
            return None
        block = self.source.take(n)
        self.exhausted = block is None
        return block

    def _deliver(self, block: FrameBlock) -> int:
        if len(self.ports) == 1:
            return self._to_port(0, block)
        chosen = self._table[rss_hash(block.rows, block.lengths) & (_TABLE_SIZE - 1)]
        delivered = 0
        for index in np.unique(chosen).tolist():
            mine = chosen == index
            delivered += self._to_port(index, FrameBlock(block.rows[mine], block.lengths[mine]))
        return delivered

    def _to_port(self, index: int, block: FrameBlock) -> int:
        delivered = self.ports[index].receive(block)
        queue = self._queues.get(index)
        if delivered and queue is not None:
            queue.interrupt()
        return delivered

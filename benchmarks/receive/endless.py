# SPDX-License-Identifier: MIT
"""Look at frames that are there already, without end: what a second thread is worth to the Python of a verdict.

A queue without a device: each poll gives the next pages of a ring of frames and puts pages of the pool in their place,
as a fill ring has them; NAPI, batch, verdict and pool are those of every queue. No kernel, no sender, no end to wait
for: longer than any interval at which threads are made to take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks.receive.drained import Drained
from benchmarks.receive.metered import run_metered
from pagepool import PagePool
from pagepool.drivers.rx_queue import RxQueue
from pagepool.memory import PageAllocator
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import FramePool, U32Array

__all__ = ["EndlessQueue", "look_in_turns"]

_RING = 8192  # frames
_OFFSET = 256  # headroom, as an XDP driver leaves it


class EndlessQueue(RxQueue):
    """A queue that always has frames, all alike."""

    def __init__(self, memory: PageAllocator, number: int, frame: bytes) -> None:
        pool = PagePool(memory=memory, pool_size=_RING)
        super().__init__("endless", number, pool)
        self._ring: U32Array = np.empty(_RING, np.uint32)
        self._lengths: U32Array = np.full(_RING, len(frame), np.uint32)
        self._at = 0
        spare: U32Array = np.empty(_RING, np.uint32)  # what goes into the ring when the first frames come out of it
        for ids in (self._ring, spare):
            assert pool.alloc_bulk(ids) == _RING
            for page_id in ids.tolist():
                self.memory.frame(page_id, _OFFSET, len(frame))[:] = np.frombuffer(frame, np.uint8)
        pool.put_bulk(spare)

    def _receive(self, budget: int) -> XdpBatch | None:
        at = self._at if self._at + budget <= _RING else 0  # a short batch would be the end of the work, for NAPI
        ids = self._ring[at : at + budget].copy()
        self.pool.alloc_bulk(self._ring[at : at + budget])
        self._at = at + budget
        return XdpBatch(self, ids, self._lengths[: len(ids)], _OFFSET)

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        return 0

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        return 0

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        return 0

    def _flush(self) -> None:
        pass

    def _close(self) -> None:
        self.pool.put_bulk(self._ring)
        self.rxq.unreg()
        self.pool.close()


def look_in_turns(
    frame: bytes,
    handler: Callable[[XdpBatch], object],
    budgets: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    cpus: tuple[int, int],
    progress: Callable[[str], None],
) -> list[Drained]:
    """Run two queues for `seconds` by one thread and by two, with every budget, `rounds` times in turns."""
    names = ("1 thread", "2 threads")
    found = {budget: [Drained(f"look, NumPy verdict {budget}, {name}") for name in names] for budget in budgets}
    with ExitStack() as stack:
        memory = PageAllocator()
        queues = [stack.enter_context(EndlessQueue(memory, number, frame)) for number in (0, 1)]
        for number in range(rounds):
            progress(f"looking: round {number + 1} of {rounds}")
            for budget, rows in found.items():
                alone = cpus[number % 2 :][:1]  # no two CPUs of a machine with other guests are equally fast
                for row, used in zip(rows, (alone, cpus), strict=True):
                    meter = run_metered(queues, handler, budget=budget, seconds=seconds, cpus=used)
                    row.kpps.append(meter.kpps)
                    row.cpu_ns.append(meter.cpu_ns)
                    row.speedup.append(meter.kpps / rows[0].kpps[-1])
    return [row for rows in found.values() for row in rows]

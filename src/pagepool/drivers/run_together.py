# SPDX-License-Identifier: MIT
"""Several queues in one thread, polled in turn: `RxQueue.run` for more than one.

It joins queues and handlers to a poll list; when to poll is `pagepool.napi.poll_list`'s to say. Invariant: afterwards
no queue has a handler, and what was received is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagepool.drivers.rx_queue import RxQueue
from pagepool.napi import NAPI_POLL_WEIGHT, PollList
from pagepool.xdp import XdpBatch

__all__ = ["Handler", "run_together"]

Handler = Callable[[XdpBatch], object]


def run_together(
    group: Sequence[tuple[RxQueue, Handler]],
    until: Callable[[], bool] | None = None,
    *,
    budget: int = NAPI_POLL_WEIGHT,
    busy_poll_us: float = 0.0,
) -> int:
    """Run several queues in the calling thread, polled in turn: `RxQueue.run` for more than one.

    Parameters
    ----------
    group : sequence of (RxQueue, callable)
        Queues, and the handler of each one's batches.
    until : callable, optional
        Asked after every batch; True ends the run.
    budget : int
        Frames per batch at most.
    busy_poll_us : float
        Microseconds to poll without a frame before sleeping.

    Returns
    -------
    int
        Frames received.

    Notes
    -----
    Sleeps when none of them has anything. Ends also when no queue will ever have a frame again; ``napi.stop()`` takes
    one out. An exception of a handler ends it for all.
    """
    by_napi = {queue.napi: queue for queue, _ in group}
    begun: list[RxQueue] = []
    try:
        for queue, handler in group:
            queue._begin(handler)
            begun.append(queue)
        listed = PollList(list(by_napi))
        return listed.run(
            until, done=lambda napi: by_napi[napi]._is_finished(), budget=budget, busy_poll_us=busy_poll_us
        )
    finally:
        for queue in begun:
            queue._handler = None

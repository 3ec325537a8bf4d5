# SPDX-License-Identifier: MIT
"""Run a function of one frame over a batch, for those who want it simple.

An adaptor from ``f(XdpBuff) -> XdpAction`` to ``handler(XdpBatch)``; not the fast path (about a microsecond
per frame, where a batch costs a few for 64). Invariant: whatever `f` raises or returns, every frame of the
batch finds its place.
"""

from __future__ import annotations

from collections.abc import Callable

from pagepool.xdp.actions import XdpAction
from pagepool.xdp.batch import XdpBatch
from pagepool.xdp.buff import XdpBuff

__all__ = ["per_frame"]


def per_frame(function: Callable[[XdpBuff], XdpAction]) -> Callable[[XdpBatch], None]:
    """Turn a function of a frame into a handler of batches, for ``queue.run(per_frame(f))``.

    Parameters
    ----------
    function : callable
        Called once per frame, in order; returns its verdict. To redirect, ``return buff.redirect(queue)``; to
        keep, call ``buff.keep()`` and return ``XdpAction.KEEP``.

    Returns
    -------
    callable
        Takes an `XdpBatch`, judges every frame and completes the batch.

    Notes
    -----
    An exception in `function` makes that frame ABORTED and is counted in ``handler_errors``; the other frames
    are judged as usual and the first exception is raised when the batch is completed, with a note of how many
    followed. What is not an `Exception` (Ctrl-C) stops the judging at once: frames not yet judged are
    recycled. An answer that is no verdict is ABORTED.
    """

    def handler(batch: XdpBatch) -> None:
        errors: list[Exception] = []
        verdicts = batch.verdicts
        stats = batch.driver.xdp_stats
        try:
            for buff in batch.buffs():
                try:
                    action = int(function(buff))
                    verdicts[buff.index] = action if 0 <= action <= XdpAction.KEEP else XdpAction.ABORTED
                except Exception as error:
                    verdicts[buff.index] = XdpAction.ABORTED
                    stats.handler_errors += 1
                    errors.append(error)
        finally:
            batch.complete()
        if errors:
            if len(errors) > 1:
                errors[0].add_note(f"{len(errors) - 1} more frames of this batch of {len(batch)} raised")
            raise errors[0]

    return handler

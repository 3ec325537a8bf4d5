# SPDX-License-Identifier: MIT
"""Counters of one queue's verdicts. Plain ints, written by the queue's owner, readable by anyone at any time.

Invariant, once every batch is completed: ``rx_frames`` is the sum of the verdicts
``aborted + drop + passed + tx + redirect + keep + none``. The ``*_dropped`` counters are parts of their
verdict, not beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["XdpStats"]


@dataclass(slots=True)
class XdpStats:
    """Frames by verdict.

    Attributes
    ----------
    rx_batches, rx_frames : int
        Completed batches and the frames in them.
    aborted : int
        ABORTED, an unknown verdict, REDIRECT without a queue, KEEP without `keep`, or a frame that left its
        page.
    drop, passed, tx, redirect, keep : int
        Frames by the verdict asked for.
    none : int
        Frames that nobody judged; recycled.
    tx_dropped, pass_dropped, redirect_dropped : int
        Frames that were to leave and found no room, or whose driver raised; recycled.
    handler_errors : int
        Exceptions raised by a `per_frame` function.
    """

    rx_batches: int = 0
    rx_frames: int = 0
    aborted: int = 0
    drop: int = 0
    passed: int = 0
    tx: int = 0
    redirect: int = 0
    keep: int = 0
    none: int = 0
    tx_dropped: int = 0
    pass_dropped: int = 0
    redirect_dropped: int = 0
    handler_errors: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name, in the order above."""
        return asdict(self)

# SPDX-License-Identifier: MIT
"""The figures of one loopback queue at one moment, gathered from the device, the batches, the poller and the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LoopbackStats"]


@dataclass(frozen=True, slots=True)
class LoopbackStats:
    """Figures of one queue.

    Attributes
    ----------
    rx_frames, rx_bytes, rx_dropped, rx_length_errors, tx_frames, tx_bytes : int
        The device's counters, see `PortStats`.
    alloc_failed : int
        Refills that the pool could not fill.
    xdp, napi, pool : dict of str to int
        Verdicts, polls, and the pool's figures.
    """

    rx_frames: int
    rx_bytes: int
    rx_dropped: int
    rx_length_errors: int
    tx_frames: int
    tx_bytes: int
    alloc_failed: int
    xdp: dict[str, int]
    napi: dict[str, int]
    pool: Any

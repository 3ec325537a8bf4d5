# SPDX-License-Identifier: MIT
"""Carry out the verdicts of a batch: the one place where the frames of a batch leave it.

It decides nothing: the verdicts are in the batch, the devices behind the driver. Invariant: after `carry_out`
every frame has been accepted by exactly one taker (the driver, the stack, another queue, a `keep`) or put
back to its pool, also where a driver raises or has no room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pagepool.xdp.actions import XdpAction
from pagepool.xdp.driver import RedirectTarget, U32Array, XdpDriver

if TYPE_CHECKING:
    from pagepool.xdp.batch import XdpBatch
    from pagepool.xdp.stats import XdpStats

__all__ = ["carry_out"]

# Plain ints: an enum member costs a look-up each time, and this runs once per batch.
_DROP, _PASS, _TX = int(XdpAction.DROP), int(XdpAction.PASS), int(XdpAction.TX)
_REDIRECT, _KEEP, _NONE = int(XdpAction.REDIRECT), int(XdpAction.KEEP), int(XdpAction.NONE)

_Taker = Callable[[U32Array, U32Array, U32Array], int]
_Mask = npt.NDArray[np.bool_]
_Rows = npt.NDArray[np.intp]


def carry_out(driver: XdpDriver, batch: XdpBatch) -> None:
    """Hand each frame to where its verdict says and put the others back; then the batch is dead.

    Parameters
    ----------
    driver : XdpDriver
        The queue the batch came from; its `xdp_stats` are counted.
    batch : XdpBatch
        Alive; a dead one is left alone.

    Raises
    ------
    BaseException
        What a taker raised, the first of them, after every frame has found its place.

    Context: the queue's owner thread, as `XdpDriver.finish` calls it.
    """
    # Slots, not properties: without a GIL every thread counts its references to the one property object of a class, and
    # each count is a cache line that moves from CPU to CPU (docs/forwarding.md).
    if batch._done:
        return
    n = len(batch)
    stats = driver.xdp_stats
    stats.rx_batches += 1
    stats.rx_frames += n
    whole, kept = batch._whole, batch._kept
    if batch._verdicts is None and kept is None and whole in (_DROP, _NONE):
        # The common end of a batch: one call, no verdict array was ever made.
        driver.pool.put_bulk(batch.ids)
        batch.mark_completed()
        if whole == _DROP:
            stats.drop += n
        else:
            stats.none += n
        return
    _carry_out_each(driver, batch, kept)


def _carry_out_each(driver: XdpDriver, batch: XdpBatch, kept: _Mask | None) -> None:
    """The general path: each verdict that occurs, once, over the frames that have it."""
    error: BaseException | None = None
    handover = None if kept is None else _Handover(batch, kept)  # made where it is needed: most batches only drop
    try:
        raw = _count(driver.xdp_stats, batch, kept)
        if _TX in raw or _PASS in raw or _REDIRECT in raw:
            if handover is None:
                handover = _Handover(batch, kept)
            _hand_over(driver, batch, handover, raw)
    except BaseException as failure:
        error = failure
    driver.pool.put_bulk(batch.ids if handover is None else batch.ids[handover.back])
    batch.mark_completed()
    if handover is not None:
        error = handover.error or error
    for target in batch._targets:
        try:
            getattr(target, "xdp_flush", _nothing)()
        except BaseException as failure:
            error = error or failure
    if error is not None:
        raise error


def _count(stats: XdpStats, batch: XdpBatch, kept: _Mask | None) -> bytes:
    """Count the frames that stay, and return all verdicts; those that leave are counted where they are accepted."""
    verdicts = batch._each_verdict()
    n_kept = 0
    if kept is not None:
        # KEEP cannot be taken back: the page already belongs to the caller.
        verdicts[kept] = _KEEP
        n_kept = int(np.count_nonzero(kept))
    raw = verdicts.tobytes()
    stats.keep += n_kept
    stats.drop += raw.count(_DROP)
    stats.none += raw.count(_NONE)
    # Whatever is none of the known verdicts, and a KEEP written by hand, which nobody holds a page for.
    stats.aborted += len(raw) - n_kept - sum(map(raw.count, (_DROP, _NONE, _PASS, _TX, _REDIRECT)))
    return raw


def _hand_over(driver: XdpDriver, batch: XdpBatch, handover: _Handover, raw: bytes) -> None:
    """Give away the frames that leave."""
    stats, verdicts = driver.xdp_stats, batch._each_verdict()
    if _TX in raw:
        sent, lost = handover.give(driver.transmit, (verdicts == _TX).nonzero()[0], stats)
        stats.tx += sent + lost
        stats.tx_dropped += lost
    if _PASS in raw:
        sent, lost = handover.give(driver.pass_to_stack, (verdicts == _PASS).nonzero()[0], stats)
        stats.passed += sent + lost
        stats.pass_dropped += lost
    if _REDIRECT in raw:
        rows = (verdicts == _REDIRECT).nonzero()[0]
        chosen = batch.target_index(rows)
        stats.aborted += int(np.count_nonzero(chosen == 0))
        for number, target in enumerate(batch.targets, 1):
            sent, lost = handover.give(_xmit_to(target, driver), rows[chosen == number], stats)
            stats.redirect += sent + lost
            stats.redirect_dropped += lost


class _Handover:
    """Give frames away and remember which of them found no taker."""

    __slots__ = ("back", "batch", "error", "inside", "looked")

    def __init__(self, batch: XdpBatch, kept: _Mask | None) -> None:
        self.batch = batch
        self.back = np.ones(len(batch), np.bool_) if kept is None else ~kept
        self.error: BaseException | None = None
        self.inside: _Mask | None = None
        self.looked = False

    def give(self, taker: _Taker, rows: _Rows, stats: XdpStats) -> tuple[int, int]:
        """Return how many of `rows` were accepted and how many found no room; the ill-formed are aborted."""
        batch = self.batch
        if not self.looked:
            self.inside, self.looked = batch.inside_page(), True
        if self.inside is not None:
            asked, rows = len(rows), rows[self.inside[rows]]
            stats.aborted += asked - len(rows)
        fit = len(rows)
        if fit == 0:
            return 0, 0
        ids, lengths, offsets = batch.ids, batch.lengths, batch.offsets
        if fit != len(ids):
            ids, lengths, offsets = ids[rows], lengths[rows], offsets[rows]
        try:
            accepted = min(max(int(taker(ids, lengths, offsets)), 0), fit)
        except BaseException as error:
            # The contract of a taker: if it raises it has taken nothing. Its frames go back, the rest goes
            # on.
            self.error = self.error or error
            accepted = 0
        self.back[rows if accepted == fit else rows[:accepted]] = False
        return accepted, fit - accepted


def _nothing() -> None:
    """The flush of a driver that sends at once."""


def _xmit_to(target: RedirectTarget, source: XdpDriver) -> _Taker:
    def xmit(ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        return target.xdp_xmit(source.pool, ids, lengths, offsets)

    return xmit

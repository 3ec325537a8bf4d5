# SPDX-License-Identifier: MIT
"""When each frame came: the steering program writes it before the frame, a batch reads it there.

An AF_XDP descriptor has no time in it. What an XDP program puts before a frame (its *metadata*,
``bpf_xdp_adjust_meta``) comes along, in the page's headroom: two words here, a mark that says that there is a time, and
the time. It is the time at which the program ran, not the device's. Invariant: nothing is read outside the frame's
page, and what bears no mark is no time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size
from pagepool.xdp import XdpBatch
from pagepool.xdp.driver import U32Array, U64Array, XdpDriver

__all__ = ["ARRIVAL_BYTES", "StampedBatch", "emit_arrival"]

ARRIVAL_BYTES: Final = 16  # a multiple of 4, at most 32: what the kernel takes as metadata
_MARK: Final = (0x7061_6765, 0x706F_6F6C)  # two 32-bit words, in the machine's order
_MD_DATA, _MD_DATA_META = 0, 8  # struct xdp_md


def emit_arrival(asm: Assembler) -> None:
    """Write mark and time before the frame. R6 is the context before and after; R0 to R5 are lost.

    Where the driver has no room for metadata, or something is in it already, the frame stays as it is.
    """
    asm.alu(R.R1, "=", R.R6)
    asm.alu(R.R2, "=", -ARRIVAL_BYTES)
    asm.call(Helper.XDP_ADJUST_META)
    asm.jump_if(R.R0, "!=", 0, "arrived")
    asm.call(Helper.KTIME_GET_NS)
    asm.load(R.R2, R.R6, _MD_DATA_META, Size.U32)
    asm.load(R.R3, R.R6, _MD_DATA, Size.U32)
    asm.alu(R.R1, "=", R.R2)
    asm.alu(R.R1, "+=", ARRIVAL_BYTES)
    asm.jump_if(R.R1, ">", R.R3, "arrived")
    for at, word in enumerate(_MARK):
        asm.store(R.R2, 4 * at, word, Size.U32)
    asm.store(R.R2, 8, R.R0, Size.U64)
    asm.label("arrived")


class StampedBatch(XdpBatch):
    """A batch of a queue that was opened with ``timestamps=True``."""

    __slots__ = ("_came_at",)

    def __init__(self, driver: XdpDriver, ids: U32Array, lengths: U32Array, offsets: int | U32Array) -> None:
        super().__init__(driver, ids, lengths, offsets)
        # `adjust_head` moves a frame, not what was written before it.
        self._came_at = offsets if isinstance(offsets, int) else offsets.copy()

    @property
    def timestamps_ns(self) -> U64Array:
        """(n,) uint64 : ``CLOCK_MONOTONIC`` when the program saw each frame; 0 where nothing was written. A new array.

        Raises
        ------
        DeadBatchError
            The pages are already used for other frames.

        Notes
        -----
        Read from the pages, some microseconds for a batch. A frame that was kept has it as long as it is not rewritten;
        bytes that were put before the frame by ``adjust_head`` overwrite it.
        """
        self.check_alive()
        stamps = np.zeros(len(self), np.uint64)
        at = np.broadcast_to(np.asarray(self._came_at, np.int64), len(self)) - ARRIVAL_BYTES
        (rows,) = (at >= 0).nonzero()
        first = (self.ids[rows].astype(np.int64) << 12) + at[rows]
        words = self.driver.memory.flat[first[:, None] + np.arange(ARRIVAL_BYTES)].view(np.uint32)
        written = (words[:, :2] == _MARK).all(axis=1)
        stamps[rows[written]] = words[written, 2:].copy().view(np.uint64)[:, 0]
        return stamps

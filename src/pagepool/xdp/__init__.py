# SPDX-License-Identifier: MIT
"""Frames: actions, queues as frames know them, single frames, and batches with their verdicts.

Not a device and not a poller. Imports `_core` only; needs NumPy.
"""

from pagepool.xdp.actions import XdpAction
from pagepool.xdp.batch import XdpBatch
from pagepool.xdp.buff import XdpBuff, XdpFrame
from pagepool.xdp.driver import XdpDriver
from pagepool.xdp.frame_memory import FrameMemory
from pagepool.xdp.frame_set import DeadBatchError
from pagepool.xdp.headers import Headers
from pagepool.xdp.per_frame import per_frame
from pagepool.xdp.rxq_info import MemType, XdpRxqError, XdpRxqInfo
from pagepool.xdp.stats import XdpStats
from pagepool.xdp.verdicts import carry_out

__all__ = [
    "DeadBatchError",
    "FrameMemory",
    "Headers",
    "MemType",
    "XdpAction",
    "XdpBatch",
    "XdpBuff",
    "XdpDriver",
    "XdpFrame",
    "XdpRxqError",
    "XdpRxqInfo",
    "XdpStats",
    "carry_out",
    "per_frame",
]

# SPDX-License-Identifier: MIT
"""A queue with no device behind it: it records what a batch hands out, and gives batches of made-up frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagepool.xdp import FrameMemory, XdpBatch, XdpRxqInfo, XdpStats, carry_out


class RecordingQueue:
    """An `XdpDriver` that accepts up to `room` frames per call and keeps their bytes."""

    def __init__(self, pool: Any, name: str = "test0", room: int = 1 << 30) -> None:
        self.name, self.queue, self.pool, self.room = name, 0, pool, room
        self.memory = FrameMemory(pool)
        self.rxq = XdpRxqInfo()
        self.xdp_stats = XdpStats()
        self.sent: list[bytes] = []
        self.passed: list[bytes] = []
        self.fail: Exception | None = None

    def batch(self, frames: list[bytes], offsets: int | list[int] = 0) -> XdpBatch:
        """Write frames to fresh pages and return them as a batch."""
        ids = np.empty(len(frames), np.uint32)
        assert self.pool.alloc_bulk(ids) == len(frames)
        each = [offsets] * len(frames) if isinstance(offsets, int) else offsets
        for page_id, offset, frame in zip(ids.tolist(), each, frames, strict=True):
            self.memory.frame(page_id, offset, len(frame))[:] = np.frombuffer(frame, np.uint8)
        lengths = np.array([len(frame) for frame in frames], np.uint32)
        return XdpBatch(self, ids, lengths, offsets if isinstance(offsets, int) else np.array(offsets, np.uint32))

    def _take(self, pool: Any, sink: list[bytes], ids: Any, lengths: Any, offsets: Any) -> int:
        if self.fail is not None:
            raise self.fail
        n = min(len(ids), self.room)
        memory = FrameMemory(pool)
        for i in range(n):
            sink.append(memory.frame(int(ids[i]), int(offsets[i]), int(lengths[i])).tobytes())
        pool.put_bulk(ids[:n])
        return n

    def transmit(self, ids: Any, lengths: Any, offsets: Any) -> int:
        return self._take(self.pool, self.sent, ids, lengths, offsets)

    def pass_to_stack(self, ids: Any, lengths: Any, offsets: Any) -> int:
        return self._take(self.pool, self.passed, ids, lengths, offsets)

    def xdp_xmit(self, source: Any, ids: Any, lengths: Any, offsets: Any) -> int:
        return self._take(source, self.sent, ids, lengths, offsets)

    def finish(self, batch: XdpBatch) -> None:
        carry_out(self, batch)

# SPDX-License-Identifier: MIT
"""Where frames leave a queue: its tx ring, the kernel's stack, the tx ring of another queue.

The taking half of `XdpDriver`. It never polls. Invariant: a page that was accepted here goes home exactly
once: when the kernel has sent it, or at once where its bytes were copied.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pagepool._core.page_pool import PagePool
from pagepool.drivers.af_xdp._rings import XskRings
from pagepool.drivers.af_xdp.home_ns import HomeNs
from pagepool.drivers.af_xdp.steering import Steering
from pagepool.errors import DeviceError
from pagepool.xdp import FrameMemory
from pagepool.xdp.driver import U32Array

__all__ = ["Egress"]


class Egress:
    """The ways out of one queue.

    Attributes
    ----------
    memory : FrameMemory
        The queue's arena as arrays; set before the first frame leaves.
    refusal : int
        errno of the last send that the device refused for good, 0 if none.
    pass_errors : int
        Frames that the stack did not take (longer than about 3400 bytes, or no memory); dropped.
    copied : int
        Frames redirected here from another arena.
    """

    def __init__(self, rings: XskRings, steering: Steering, home: HomeNs, queue: int) -> None:
        self.memory: FrameMemory
        self.refusal = 0
        self.pass_errors = 0
        self.copied = 0
        self._rings = rings
        self._steering = steering
        self._home = home
        self._queue = queue
        self._copy_lock = threading.Lock()
        self._copy_pool: PagePool | None = None

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array, source: Any = None) -> int:
        """Queue frames of this arena; `kick` sends them. Returns how many of the first were taken."""
        rings = self._rings
        done = rings.transmit(ids, lengths, offsets, source)
        if done < len(ids):  # perhaps only because nobody has looked lately
            self.kick()
            rings.reap()
            done += rings.transmit(ids[done:], lengths[done:], offsets[done:], source)
        return done

    def kick(self) -> None:
        """Send what is queued; what the device refuses for good is left in `refusal`."""
        rings = self._rings
        while rings.nr_tx_queued:
            refusal = rings.kick()
            if refusal:
                self.refusal = refusal
                return
            # With its completion ring full the kernel sends nothing more: empty it, and go on.
            if not rings.nr_tx_queued or not rings.reap():
                return

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Hand copies to the stack and put the pages; takes them all."""
        frame = self.memory.frame
        with self._home.inside():
            for page_id, length, offset in zip(ids.tolist(), lengths.tolist(), offsets.tolist(), strict=True):
                try:
                    self._steering.pass_frame(frame(page_id, offset, length).data, self._queue)
                except DeviceError:
                    self.pass_errors += 1
        self._rings.pool.put_bulk(ids)
        return len(ids)

    def xmit(self, source: Any, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Send frames that another queue received; see `XdpDriver.xdp_xmit`.

        Notes
        -----
        Context: any thread, also while another closes the queue. Pages of the same arena go straight into the tx
        ring; others are copied. What the kernel has sent goes home at once, whether or not anybody polls this queue.
        """
        if source.arena is self._rings.pool.arena:
            done = self.transmit(ids, lengths, offsets, source)
        else:
            done = self._copy(source, ids, lengths, offsets)
        self.kick()
        self._rings.reap()
        return done

    def _copy(self, source: Any, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        own = np.empty(len(ids), np.uint32)
        with self._copy_lock:
            if self._copy_pool is None:
                params = self._rings.pool.params
                self._copy_pool = PagePool(
                    flags=params.flags, dev=params.dev, memory=params.memory, pool_size=params.pool_size
                )
            pool = self._copy_pool
            if not pool.is_owner:
                pool.claim()
            own = own[: pool.alloc_bulk(own)]
            from_rows, to_rows = FrameMemory(source), self.memory
            for i, page_id in enumerate(own.tolist()):
                length, offset = int(lengths[i]), int(offsets[i])
                to_rows.frame(page_id, offset, length)[:] = from_rows.frame(int(ids[i]), offset, length)
            done = self.transmit(own, lengths[: len(own)], offsets[: len(own)], pool)
            pool.put_bulk(own[done:])
        source.put_bulk(ids[:done])
        self.copied += done
        return done

    def close(self) -> None:
        """Destroy the pool that copies were made from. Idempotent."""
        if self._copy_pool is not None:
            self._copy_pool.close()

# SPDX-License-Identifier: MIT
"""The frames of one poll as arrays: where they are, how long, and what is in them.

The reading half of a batch; it knows nothing of verdicts. Invariant: nothing here reads or writes outside the
pages in `ids`, and nothing at all once the pages have found their next owner.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pagepool.errors import PagePoolError
from pagepool.xdp.driver import U32Array, U64Array, XdpDriver
from pagepool.xdp.headers import Headers

__all__ = ["DeadBatchError", "FrameSet"]

_MIN_FRAME_BYTES = 14  # an Ethernet header: the kernel's bound for bpf_xdp_adjust_head and _tail
_ALL = slice(None)


class DeadBatchError(PagePoolError):
    """A batch was used after it was completed: its pages are already used for something else."""


class FrameSet:
    """Pages that hold frames, and the verbs that need no verdict.

    Parameters
    ----------
    driver : XdpDriver
        The queue; its `memory` is where the pages are.
    ids : (n,) uint32
        Page of each frame; the array is made read-only.
    lengths : (n,) uint32
        Bytes of each frame.
    offsets : int or (n,) uint32
        Bytes from the first byte of a page to the frame's; an int where all are the same, which is faster.

    Context: one thread, the queue's owner.
    """

    __slots__ = ("_done", "_driver", "_offset", "_offsets", "ids", "lengths")

    def __init__(self, driver: XdpDriver, ids: U32Array, lengths: U32Array, offsets: int | U32Array) -> None:
        self._done = True  # until the pages are owned, the death of this object must not put them
        ids.setflags(write=False)
        self._driver = driver
        self.ids = ids
        self.lengths = lengths
        if type(offsets) is int:
            self._offset: int = offsets
            self._offsets: U32Array | None = None
        else:
            self._offset = 0
            self._offsets = np.asarray(offsets, np.uint32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def driver(self) -> XdpDriver:
        """XdpDriver : the queue it came from."""
        return self._driver

    @property
    def completed(self) -> bool:
        """bool : whether the verdicts have been carried out."""
        return self._done

    @property
    def offsets(self) -> U32Array:
        """(n,) uint32 : bytes from the first byte of each page to its frame; change it by `adjust_head`."""
        if self._offsets is None:
            self._offsets = np.full(len(self.ids), self._offset, np.uint32)
        return self._offsets

    @property
    def timestamps_ns(self) -> U64Array | None:
        """(n,) uint64 or None : ``CLOCK_MONOTONIC`` when each frame came, 0 if unknown; None: the queue knows none."""
        return None

    def came_ns(self) -> npt.NDArray[np.int64]:
        """Return when each frame came, ``(n,) int64`` nanoseconds since 1970; now, where the queue does not know."""
        now, stamps = time.time_ns(), self.timestamps_ns
        if stamps is None:
            return np.full(len(self), now, np.int64)
        since_1970 = now - time.monotonic_ns()
        return np.where(stamps, stamps.astype(np.int64) + since_1970, now)

    @property
    def dma_addr(self) -> U64Array:
        """(n,) uint64 : where the device finds each frame's first byte; a new array.

        Raises
        ------
        NotMappedError
            The pool maps nothing.
        """
        self.check_alive()
        out = np.empty(len(self.ids), np.uint64)
        self._driver.pool.dma_addrs(self.ids, out)
        out += np.uint64(self._offset) if self._offsets is None else self._offsets
        return out

    def headers(self, n_bytes: int, at: int = 0) -> Headers:
        """Return a window into every frame.

        Parameters
        ----------
        n_bytes : int
            Bytes of the window, at least 1. It may exceed a frame's length but not its page.
        at : int
            Bytes from the frame's first byte to the window.

        Raises
        ------
        ValueError
            If the window leaves the page of any frame.
        """
        self.check_alive()
        if self._driver.memory.cpu_access is not None:
            self._cpu_looks(n_bytes, at)
        return Headers(self, self._driver.memory, self._offset, self._offsets, n_bytes, at)

    def frame(self, i: int) -> memoryview:
        """Return frame `i` as a writable ``(length,) uint8`` memoryview of its page.

        It does not hold the page: it is right until the batch is completed, and afterwards still safe to
        touch, but shows what the page is used for next. To hold the page take ``batch.keep(i)``.
        """
        self.check_alive()
        length = int(self.lengths[i])
        offset = self._offset if self._offsets is None else int(self._offsets[i])
        if offset + length > self._driver.memory.page_bytes:
            raise ValueError(f"frame {i}: {length} bytes at offset {offset} do not lie in its page")
        return self._driver.memory.frame(int(self.ids[i]), offset, length).data

    def lease(self, n_bytes: int | None = None, at: int = 0) -> Any:
        """Hold the pages of all frames beyond the end of the batch, whatever their verdicts.

        Parameters
        ----------
        n_bytes : int, optional
            Bytes of each frame that the lease shows; by default whole frames, which must be of one length then.
        at : int
            Bytes from a frame's first byte to the first shown.

        Returns
        -------
        Lease
            References only: the batch still owns its frames, and its verdicts are carried out. Each page comes home
            when the lease, and every array and tensor made of it, has gone too. Where the pages lie at equal distances
            (``strided``) it is an ``(n, n_bytes) uint8`` buffer.

        Raises
        ------
        BufferError
            The frames differ in length or in where they start, or one was kept: they are no rectangle.
        ValueError
            The window leaves the page.
        """
        self.check_alive()
        if self.kept_or_none is not None and self.kept_or_none.any():
            raise BufferError("frames were kept: the Page of each is its tensor")
        if self._driver.memory.cpu_access is not None:
            self._cpu_looks(self._driver.memory.page_bytes if n_bytes is None else n_bytes, at)
        offset = self._offset
        if self._offsets is not None and len(self):
            offset = int(self._offsets[0])
            if (self._offsets != offset).any():
                raise BufferError("the frames start at different bytes of their pages: headers() gathers them")
        if n_bytes is None:
            n_bytes = self.one_length() - at
        if n_bytes < 0 or at < 0:
            raise ValueError(f"lease({n_bytes}, at={at}): neither may be negative")
        return self._driver.pool.lease(self.ids, offset + at, n_bytes)

    def one_length(self) -> int:
        """Return the length of every frame, in bytes; 0 for no frames.

        Raises
        ------
        BufferError
            They differ.
        """
        length = int(self.lengths[0]) if len(self) else 0
        if (self.lengths != length).any():
            raise BufferError(
                f"frames of {self.lengths.min()} to {self.lengths.max()} bytes are no rectangle: say how many bytes "
                "of each, by headers(n_bytes)"
            )
        return length

    def lease_frame(self, i: int) -> Any:
        """Hold the page of frame `i` beyond the end of the batch, whatever its verdict.

        Returns
        -------
        Lease
            A ``(length,) uint8`` buffer of the frame; as `lease`.

        Raises
        ------
        BufferError
            The frame was kept: its `Page` is the buffer.
        """
        self.check_alive()
        i = range(len(self.ids))[i]
        if self.kept_or_none is not None and self.kept_or_none[i]:
            raise BufferError(f"frame {i} was kept: its Page is the tensor")
        offset = self._offset if self._offsets is None else int(self._offsets[i])
        if self._driver.memory.cpu_access is not None:
            self._driver.memory.cpu_access(int(self.dma_addr[i]), int(self.lengths[i]))
        return self._driver.pool.lease(int(self.ids[i]), offset, int(self.lengths[i]))

    def _cpu_looks(self, n_bytes: int, at: int) -> None:
        # The device judges: tell it of the part of each window that is its frame's.
        look = self._driver.memory.cpu_access
        assert look is not None
        for dma_addr, length in zip(self.dma_addr.tolist(), self.lengths.tolist(), strict=True):
            if length > at and n_bytes > 0:
                look(dma_addr + at, min(n_bytes, length - at))

    @property
    def kept_or_none(self) -> npt.NDArray[np.bool_] | None:
        """(n,) bool or None : which frames are not the batch's any more; here none ever leaves."""
        return None

    def adjust_head(self, delta: int, mask: Any = None) -> None:
        """Move the start of frames, as ``bpf_xdp_adjust_head``: negative grows into the headroom.

        Parameters
        ----------
        delta : int
            Bytes; the new headroom's content is whatever the page holds.

        Raises
        ------
        ValueError
            If a frame would leave its page or become shorter than 14 bytes (an Ethernet header); nothing is
            changed then.
        """
        self._adjust(delta, delta, mask)

    def adjust_tail(self, delta: int, mask: Any = None) -> None:
        """Move the end of frames, as ``bpf_xdp_adjust_tail``.

        Negative cuts, positive shows what the page holds.
        """
        self._adjust(0, -delta, mask)

    def check_alive(self) -> None:
        """Raise `DeadBatchError` if the batch has been completed."""
        if self._done:
            raise DeadBatchError(
                f"this batch of {len(self.ids)} frames was completed: its pages are used for others by now"
            )

    def inside_page(self) -> npt.NDArray[np.bool_] | None:
        """Return which frames lie in their page, None for all of them (lengths and offsets are writable)."""
        limit = self._driver.memory.page_bytes
        if self._offsets is None and len(self.lengths) and int(np.maximum.reduce(self.lengths)) + self._offset <= limit:
            return None
        ends = np.add(self.lengths, self._offset if self._offsets is None else self._offsets, dtype=np.int64)
        return None if int(ends.max(initial=0)) <= limit else ends <= limit

    def _adjust(self, head: int, shrink: int, mask: Any) -> None:
        self.check_alive()
        rows = np.arange(len(self.ids))[_ALL if mask is None else mask]
        lengths = self.lengths[rows].astype(np.int64) - shrink
        offsets = self.offsets[rows].astype(np.int64) + head
        inside = (offsets >= 0) & (offsets + lengths <= self._driver.memory.page_bytes)
        if not (inside & (lengths >= _MIN_FRAME_BYTES)).all():
            raise ValueError("a frame would leave its page, or keep less than an Ethernet header (14 bytes)")
        self.lengths[rows] = lengths
        self.offsets[rows] = offsets

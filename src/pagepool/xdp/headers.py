# SPDX-License-Identifier: MIT
"""The first bytes of every frame of a batch as one 2-D array that is not copied until it is indexed.

`Headers` is not an ndarray and holds no bytes: a single row is a view of DMA memory, a column is gathered
from DMA memory, an assignment is scattered into it. Invariant: every index is resolved inside the window
``[at, at + n_bytes)`` of each frame's own page; nothing outside it is ever read or written.

Columns of all frames come from `PageWindow`; what it does not do (some rows, lists of columns, offsets that differ) is
fancy indexing on a strided view, never ``take``: ``take`` makes its operand contiguous first, which here would copy one
byte of every page of the arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pagepool._core.params import PAGE_SIZE
from pagepool._core.tensor import CPU_DEVICE, capsule
from pagepool.xdp.driver import U8Array, U32Array

if TYPE_CHECKING:
    from pagepool.xdp.frame_memory import FrameMemory

__all__ = ["Headers"]

_ALL = slice(None)


class _Frames(Protocol):
    """What `Headers` needs of a batch."""

    @property
    def ids(self) -> U32Array: ...
    @property
    def lengths(self) -> U32Array: ...
    def check_alive(self) -> None: ...
    def lease(self, n_bytes: int | None = None, at: int = 0) -> Any: ...


class Headers:
    """A window of `n_bytes` into each frame, made by `XdpBatch.headers`.

    ``h[i]``
        A zero-copy, writable ``(n_bytes,) uint8`` view of frame ``i``.
    ``h[i, c]``, ``h[i, a:b]``
        A byte, or a part of that view.
    ``h[:, c]``, ``h[:, a:b]``, ``h[mask, a:b]``, ``h[rows, cols]``
        A new array, gathered straight from DMA memory; indices mean what they mean on an ndarray.
    ``h[...] = values``
        Scattered straight into DMA memory, broadcast as NumPy does.
    ``np.asarray(h)``
        All of it, ``(n, n_bytes) uint8``, copied.
    ``torch.from_dlpack(h)``
        All of it, the frames themselves where they happen to be one tensor, else gathered.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n_bytes)``.
    at, n_bytes : int
        Bytes from the frame's first byte to the window; bytes of the window.

    Notes
    -----
    A frame shorter than ``at + n_bytes`` has a row too: the bytes beyond its length are whatever the page
    held before. `valid` says which rows are wholly inside their frame; a parser that may meet runts uses
    ``(h[:, 23] == 17) & h.valid``.

    A gathered column of 64 frames costs about a microsecond. An array made by a row index shares memory with
    the page: after the batch is completed it is safe to touch, but shows (and changes) whatever the page is
    used for next.

    Context: the queue's owner thread, until the batch is completed; after that every index raises
    `DeadBatchError`.
    """

    __slots__ = ("_batch", "_memory", "_offset", "_offsets", "at", "n_bytes")

    def __init__(
        self,
        batch: _Frames,
        memory: FrameMemory,
        offset: int,
        offsets: U32Array | None,
        n_bytes: int,
        at: int,
    ) -> None:
        if n_bytes < 1 or at < 0:
            raise ValueError(f"headers({n_bytes}, at={at}): n_bytes must be at least 1, at not negative")
        if offsets is not None:
            # Ask once whether they are all equal: the fast path is worth ten of these comparisons.
            first = int(offsets[0]) if len(offsets) else 0
            if bool((offsets == first).all()):
                offset, offsets = first, None
            else:
                offset = int(offsets.max())
        if offset + at + n_bytes > memory.page_bytes:
            raise ValueError(
                f"headers({n_bytes}, at={at}): a frame starts at byte {offset} of its page and "
                f"the page has {memory.page_bytes} bytes"
            )
        self._batch = batch
        self._memory = memory
        self._offset = offset
        self._offsets = offsets
        self.n_bytes = n_bytes
        self.at = at

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._batch.ids), self.n_bytes

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def lengths(self) -> U32Array:
        """(n,) uint32 : bytes of each frame, as in the batch."""
        return self._batch.lengths

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(n,) bool : rows that lie wholly inside their frame."""
        return self._batch.lengths >= self.at + self.n_bytes

    def __len__(self) -> int:
        return len(self._batch.ids)

    def __repr__(self) -> str:
        return f"<Headers of {len(self)} frames, bytes {self.at} to {self.at + self.n_bytes}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the headers of a batch lie in different pages: an array of them is a copy")
        rows: npt.NDArray[Any] = self[:, :]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """Export the window as a DLPack capsule, ``(n, n_bytes) uint8``.

        Where the pages lie at equal distances, ascending, it is the frames themselves, and holds a reference to each
        page (`XdpBatch.lease`); else it is gathered, and the capsule says that it is a copy. ``copy=True`` and
        ``copy=False`` insist on one of the two.

        Raises
        ------
        BufferError
            ``copy=False``, and it would take one.
        """
        if copy is False or (copy is None and self._may_be_one()):
            try:
                lease = self._batch.lease(self.n_bytes, self.at)
                return lease.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device or CPU_DEVICE)
            except BufferError:
                if copy is not None:
                    raise
        return capsule(self[:, :], stream=stream, max_version=max_version, dl_device=dl_device, is_copy=True)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU, ``(1, 0)``."""
        return CPU_DEVICE

    def _may_be_one(self) -> bool:
        """Whether asking for a lease can be worth it: a look at three pages, where a lease takes all."""
        ids = self._batch.ids
        if len(ids) < 2:
            return True
        first, step = int(ids[0]), int(ids[1]) - int(ids[0])
        return step > 0 and int(ids[-1]) - first == step * (len(ids) - 1)

    def __getitem__(self, key: Any) -> Any:
        self._batch.check_alive()
        if self._offsets is None and type(key) is tuple and len(key) == 2 and _is_all(key[0]):
            column = self._column(key[1])
            if column is not None:
                return column
        rows, cols = _split(key)
        if isinstance(rows, (int, np.integer)):
            row = self._row(int(rows))
            return row if cols is _ALL else row[cols]
        target, index = self._locate(rows, cols)
        return target[index]

    def __setitem__(self, key: Any, values: Any) -> None:
        self._batch.check_alive()
        rows, cols = _split(key)
        if isinstance(rows, (int, np.integer)):
            self._row(int(rows))[cols] = values
            return
        target, index = self._locate(rows, cols)
        target[index] = values

    def field(self, at: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Gather one number of every frame.

        Parameters
        ----------
        at : int
            Bytes from the start of the window; any alignment.
        dtype : dtype
            What lies there, ``">u2"`` for a port, ``">u4"`` for an IPv4 destination.

        Returns
        -------
        (n,) ndarray
            A new array; to write, use `set_field`.
        """
        wanted = self._memory.dtype(dtype)
        if self._offsets is None and not wanted.hasobject and 0 < wanted.itemsize <= self.n_bytes - at and at >= 0:
            self._batch.check_alive()
            return self._gather(at, np.empty(len(self._batch.ids), wanted))
        target, index = self._field(at, wanted)
        return target[index]  # type: ignore[no-any-return]

    def set_field(self, at: int, dtype: npt.DTypeLike, values: Any, rows: Any = None) -> None:
        """Scatter one number to every frame, or to those that `rows` selects (mask, indices or slice)."""
        target, index = self._field(at, np.dtype(dtype), _ALL if rows is None else rows)
        target[index] = values

    def _column(self, cols: Any) -> U8Array | None:
        """Gather a column, or several side by side, of all frames; None for what only `_locate` understands."""
        n = len(self._batch.ids)
        if type(cols) is int or isinstance(cols, (int, np.integer)):
            return self._gather(self._col(int(cols)), np.empty(n, np.uint8))
        if isinstance(cols, slice):
            start, stop, step = cols.indices(self.n_bytes)
            if step == 1 and start < stop:
                return self._gather(start, np.empty((n, stop - start), np.uint8))
        return None

    def _gather(self, at: int, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fill an array with the bytes of each frame from byte `at` of the window on, where all offsets are equal."""
        self._memory.pages.gather(self._batch.ids, self._offset + self.at + at, out)
        return out

    def _row(self, i: int) -> U8Array:
        ids = self._batch.ids
        n = len(ids)
        if not -n <= i < n:
            raise IndexError(f"frame {i} of a batch of {n}")
        offset = self._offset if self._offsets is None else int(self._offsets[i])
        return self._memory.frame(int(ids[i]), offset + self.at, self.n_bytes)

    def _locate(self, rows: Any, cols: Any) -> tuple[U8Array, Any]:
        """Return an array and an index into it that stand for ``[rows, cols]``."""
        ids = self._batch.ids
        if self._offsets is None:
            first = self._offset + self.at
            if isinstance(cols, (int, np.integer)):
                return self._memory.flat[first + self._col(int(cols)) :: PAGE_SIZE], _pick(ids, rows)
            if isinstance(cols, slice):
                start, stop, step = cols.indices(self.n_bytes)
                if step == 1 and first + stop <= PAGE_SIZE:
                    return self._memory.rows[:, first + start : first + stop], _pick(ids, rows)
        return self._memory.flat, self._indices(rows, cols)

    def _indices(self, rows: Any, cols: Any) -> npt.NDArray[np.int64]:
        """Return ``flat`` indices: the general path, for differing offsets and for lists of columns."""
        starts = self._batch.ids.astype(np.int64)
        starts <<= 12
        starts += self._offset if self._offsets is None else self._offsets
        starts += self.at
        starts = _pick(starts, rows)
        if isinstance(cols, (int, np.integer)):
            return np.asarray(starts + self._col(int(cols)), np.int64)
        if isinstance(cols, slice):
            return starts[..., None] + np.arange(*cols.indices(self.n_bytes))
        chosen = np.asarray(cols)
        if chosen.dtype == np.bool_:
            if chosen.shape != (self.n_bytes,):
                raise IndexError(f"a column mask of shape {chosen.shape} on a window of {self.n_bytes} bytes")
            chosen = chosen.nonzero()[0]
        elif chosen.size and chosen.dtype.kind not in "iu":
            raise IndexError(f"columns are ints, slices, masks or integer arrays, not {chosen.dtype}")
        chosen = chosen.astype(np.int64)
        if chosen.size and not (-self.n_bytes <= chosen.min() and chosen.max() < self.n_bytes):
            raise IndexError(f"a column is outside a window of {self.n_bytes} bytes")
        chosen = np.where(chosen < 0, chosen + self.n_bytes, chosen)
        # NumPy's rule: two index arrays pair up, a slice of rows is crossed with them.
        crossed = starts[:, None] if isinstance(rows, slice) else starts
        return np.asarray(crossed + chosen, np.int64)

    def _field(self, at: int, dtype: np.dtype[Any], rows: Any = _ALL) -> tuple[npt.NDArray[Any], Any]:
        self._batch.check_alive()
        if dtype.hasobject or dtype.itemsize == 0:
            raise TypeError(f"a field of a frame cannot be {dtype}")
        if not 0 <= at <= self.n_bytes - dtype.itemsize:
            raise IndexError(f"bytes {at} to {at + dtype.itemsize} are outside a window of {self.n_bytes} bytes")
        flat = self._memory.flat
        if self._offsets is None:
            first = self._offset + self.at + at
            count = (flat.size - first - dtype.itemsize) // PAGE_SIZE + 1
            numbers: npt.NDArray[Any] = np.ndarray((count,), dtype, flat.data, first, (PAGE_SIZE,))
            return numbers, _pick(self._batch.ids, rows)
        # Every byte starts one (overlapping) number; the index picks those where a field really is.
        every: npt.NDArray[Any] = np.ndarray((flat.size - dtype.itemsize + 1,), dtype, flat.data, 0, (1,))
        return every, self._indices(rows, at)

    def _col(self, col: int) -> int:
        if not -self.n_bytes <= col < self.n_bytes:
            raise IndexError(f"column {col} of a window of {self.n_bytes} bytes")
        return col if col >= 0 else col + self.n_bytes


def _is_all(rows: Any) -> bool:
    """Whether an index of rows is ``:``; to compare slices makes tuples."""
    return type(rows) is slice and rows.start is None and rows.stop is None and rows.step is None


def _split(key: Any) -> tuple[Any, Any]:
    """Return the row and the column part of an index."""
    if type(key) is not tuple:
        return (_ALL, _ALL) if key is Ellipsis else (key, _ALL)
    if len(key) == 1:
        return key[0], _ALL
    if len(key) != 2:
        raise IndexError(f"headers have two dimensions, {len(key)} indices were given")
    rows, cols = key
    return (_ALL if rows is Ellipsis else rows), (_ALL if cols is Ellipsis else cols)


def _pick(per_frame: npt.NDArray[Any], rows: Any) -> npt.NDArray[Any]:
    """Select rows; the common ``:`` costs nothing."""
    if isinstance(rows, slice) and rows == _ALL:
        return per_frame
    if rows is None:
        raise IndexError("None (a new axis) is no index of frames")
    return per_frame[rows]  # type: ignore[no-any-return]

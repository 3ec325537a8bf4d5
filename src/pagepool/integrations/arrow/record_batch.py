# SPDX-License-Identifier: MIT
"""`to_arrow`: frames as an Arrow record batch that holds their pages.

It computes the columns, puts them into memory that a `Holding` owns, and hands the lot to whoever asks by the Arrow
PyCapsule interface: pyarrow, Polars, DuckDB, nanoarrow and others, none of which is imported. The payload is not
copied and not moved. Invariant: whatever goes wrong, a page is either still the caller's or goes home by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from pagepool._core.page import Page
from pagepool.integrations.arrow._c_data import array_capsule, schema_capsule, stream_capsule
from pagepool.integrations.arrow._holding import Holding
from pagepool.integrations.arrow.columns import COLUMNS, METADATA, PAYLOAD, Frames, check_columns, fill
from pagepool.integrations.arrow.packing import Packed, Packing
from pagepool.napi import guard
from pagepool.shared.attached_queue import SharedBatch
from pagepool.xdp import XdpFrame
from pagepool.xdp.driver import U8Array
from pagepool.xdp.frame_set import FrameSet

__all__ = ["ArrowBatch", "to_arrow"]

_PAGE_SHIFT = 12


class ArrowBatch:
    """Frames and what is known of them, for any library that reads Arrow; `to_arrow` makes one.

    Attributes
    ----------
    columns : tuple of str
        Names, in order; see `pagepool.integrations.arrow.COLUMNS`.

    Notes
    -----
    It may be read any number of times, by several consumers. The pages go home when this object is gone or closed, and
    everything that was made of it without a copy, in whichever thread. pyarrow and Polars hold all of it as long as any
    column is looked at, also one without payload.

    Context: any thread.
    """

    __slots__ = ("_packed", "_rows", "columns")

    def __init__(self, columns: tuple[str, ...], rows: int, packed: Packed) -> None:
        self.columns = columns
        self._rows = rows
        self._packed: Packed | None = packed

    def __len__(self) -> int:
        return self._rows

    def __arrow_c_schema__(self) -> object:
        """Return the type as an ``arrow_schema`` capsule: a struct of the columns."""
        return make_schema(self.columns)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """Return ``(arrow_schema, arrow_array)`` capsules; a requested schema is not looked at, as the protocol allows.

        Raises
        ------
        ValueError
            After `close`.
        """
        packed = self._open()
        return make_schema(self.columns), array_capsule(packed.holding, self._rows, packed.columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return an ``arrow_array_stream`` capsule of this one batch."""
        self._open()
        return stream_capsule(_Once(self))

    def close(self) -> None:
        """Let go of the frames; what was made of them keeps them. Idempotent."""
        self._packed = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._packed is None else ""
        return f"<ArrowBatch of {self._rows} frames: {', '.join(self.columns)}{state}>"

    def _open(self) -> Packed:
        if self._packed is None:
            raise ValueError("this batch was closed: its frames are no longer its own")
        return self._packed


class _Once:
    """One batch as a stream."""

    def __init__(self, batch: ArrowBatch) -> None:
        self._batch = batch
        self._given = False

    def __arrow_c_schema__(self) -> object:
        return self._batch.__arrow_c_schema__()

    def read_next(self) -> ArrowBatch | None:
        given, self._given = self._given, True
        return None if given else self._batch


def to_arrow(
    frames: FrameSet | Sequence[Page] | Sequence[XdpFrame],
    mask: Any = None,
    *,
    columns: Iterable[str] = METADATA,
    shared: bool = False,
    timestamp_ns: int | None = None,
) -> ArrowBatch:
    """Make an Arrow record batch of frames without copying them.

    Parameters
    ----------
    frames : XdpBatch, or list of Page or XdpFrame
        A batch, or what its `keep` returned. Frames of a batch are taken out of it, as by `keep`; pages are held
        beside their handles.
    mask : mask, optional
        Which of them, as for the verdicts of a batch; by default all that have not been kept.
    columns : iterable of str
        Of `COLUMNS`; by default `METADATA`. ``METADATA + FIVE_TUPLE`` adds who talks to whom. Without ``payload`` no
        page is held, and frames of a batch stay in it.
    shared : bool
        Leave the frames in the batch: each page gets one more reference, and goes home when its verdict has been
        carried out and Arrow is done with it. A page that is sent (`tx`) or rewritten changes under Arrow too.
    timestamp_ns : int, optional
        When they came, nanoseconds since 1970. By default what the queue knows of each (``batch.timestamps_ns``), else
        now.

    Returns
    -------
    ArrowBatch

    Raises
    ------
    ValueError
        No such column; a frame that does not lie in its page.
    DeadBatchError, DeadPageError
        They were given back already.
    MemoryError
        And the frames are still the batch's, as after any error.

    Notes
    -----
    The timestamp is UTC. Each frame of an AF_XDP queue with ``timestamps=True`` has its own, and each that another
    process lends, of when it was lent. Else it is the same for all frames of a batch, and later than their arrival by
    at most the time between two polls.

    Context: for a batch, its queue's owner thread.
    """
    names = check_columns(columns)
    if isinstance(frames, FrameSet):
        return _of_batch(frames, mask, names, shared, timestamp_ns)
    return _of_pages(frames, mask, names, time.time_ns() if timestamp_ns is None else timestamp_ns)


def make_schema(columns: tuple[str, ...]) -> object:
    """Return an ``arrow_schema`` capsule of columns."""
    return schema_capsule([(name, COLUMNS[name].format, COLUMNS[name].nullable) for name in columns])


def _of_batch(batch: Any, mask: Any, names: tuple[str, ...], shared: bool, when: int | None) -> ArrowBatch:
    rows = batch.chosen(mask)
    driver = batch.driver
    ids = batch.ids[rows]
    seen = Frames(
        driver.memory.flat,
        _vaddr(driver.memory.flat),
        (ids.astype(np.int64) << _PAGE_SHIFT) + batch.offsets[rows],
        ids,
        batch.lengths[rows],
        driver.name,
        batch.queues[rows].astype(np.uint16) if isinstance(batch, SharedBatch) else driver.queue,
        batch.came_ns()[rows] if when is None else when,
    )
    packing = Packing(fill(seen, names))
    if PAYLOAD not in names:
        return ArrowBatch(names, len(rows), packing.write(Holding(None, None, packing.size_bytes)))
    guard.enter()
    try:
        holding = Holding(driver.pool, ids, packing.size_bytes, shared)
        if not shared:
            batch.disown(rows)
    finally:
        guard.leave()
    return ArrowBatch(names, len(rows), packing.write(holding))


def _of_pages(frames: Sequence[Any], mask: Any, names: tuple[str, ...], when: int) -> ArrowBatch:
    chosen = np.zeros(len(frames), np.bool_)
    chosen[slice(None) if mask is None else mask] = True
    pages = [getattr(frames[row], "page", frames[row]) for row in chosen.nonzero()[0].tolist()]
    views = tuple(memoryview(page) for page in pages)  # a reference of each page, that outlives its handle's put
    n = len(pages)
    vaddrs = np.fromiter((page.vaddr for page in pages), np.int64, n)
    lengths = np.fromiter(map(len, pages), np.uint32, n)
    base_vaddr = int(vaddrs.min(initial=1 << 62)) if n else 0
    span_bytes = int((vaddrs + lengths).max(initial=base_vaddr)) - base_vaddr
    ids = np.fromiter((page.id for page in pages), np.uint32, n)
    flat: U8Array = np.asarray(_Span(base_vaddr, span_bytes)) if span_bytes else np.empty(0, np.uint8)
    seen = Frames(flat, base_vaddr, vaddrs - base_vaddr, ids, lengths, None, None, when)
    packing = Packing(fill(seen, names))
    holding = Holding(views if PAYLOAD in names else None, None, packing.size_bytes)
    return ArrowBatch(names, n, packing.write(holding))


class _Span:
    """The address space from the first page to the last, of one arena or several; only pages in it are touched."""

    def __init__(self, vaddr: int, size_bytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (vaddr, True),
            "strides": None,
        }


def _vaddr(array: U8Array) -> int:
    return int(array.__array_interface__["data"][0])

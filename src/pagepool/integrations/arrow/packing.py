# SPDX-License-Identifier: MIT
"""Put the arrays of columns into a holding's memory, and list the buffers that Arrow wants of each.

In two steps, because the memory is asked for before the frames change hands: plan, then write. Invariant: every array
begins at a multiple of 64 bytes, as Arrow recommends, and every vaddr given out is of the holding's memory or pages.

Source: https://arrow.apache.org/docs/format/Columnar.html#buffer-listing-for-each-layout
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pagepool.integrations.arrow._holding import Holding
from pagepool.integrations.arrow.columns import Column
from pagepool.xdp.driver import U64Array

__all__ = ["Packed", "Packing"]

_ALIGN_BYTES = 64


class _Plan(NamedTuple):
    null_count: int
    valid_at: int | None  # bytes from the start of the memory; None for a buffer that is not there
    values_at: int
    data_at: int | None  # of the one data buffer of text
    vaddrs: U64Array | None  # of data buffers that are frames
    sizes_at: int | None


class Packed(NamedTuple):
    """Columns in memory.

    Attributes
    ----------
    holding : Holding
        Holds it.
    columns : list of (int, (k,) uint64)
        Of each the null count, and the vaddr of each buffer.
    """

    holding: Holding
    columns: list[tuple[int, U64Array]]


class Packing:
    """The plan.

    Parameters
    ----------
    columns : list of Column

    Attributes
    ----------
    size_bytes : int
        Memory it takes.
    """

    def __init__(self, columns: list[Column]) -> None:
        self.size_bytes = 0
        self._pieces: list[tuple[int, npt.NDArray[Any]]] = []
        self._plans = [self._plan(column) for column in columns]

    def write(self, holding: Holding) -> Packed:
        """Copy the arrays into the holding's memory.

        Returns
        -------
        Packed
            For `array_capsule`.
        """
        memory = np.asarray(memoryview(holding))
        for at, piece in self._pieces:
            memory[at : at + piece.nbytes] = piece.reshape(-1).view(np.uint8)
        return Packed(holding, [(plan.null_count, _buffers(plan, holding.vaddr)) for plan in self._plans])

    def _plan(self, column: Column) -> _Plan:
        null_count, valid_at = 0, None
        if column.valid is not None:
            null_count = len(column.valid) - int(np.count_nonzero(column.valid))
            if null_count:
                valid_at = self._place(np.packbits(column.valid, bitorder="little"))
        values_at = self._place(column.values)
        data_at = sizes_at = None
        if column.data is not None:
            data_at = self._place(column.data)
            sizes_at = self._place(np.array([len(column.data)], np.int64))
        elif column.sizes is not None:
            sizes_at = self._place(column.sizes)
        return _Plan(null_count, valid_at, values_at, data_at, column.vaddrs, sizes_at)

    def _place(self, array: npt.NDArray[Any]) -> int:
        at = self.size_bytes
        self._pieces.append((at, np.ascontiguousarray(array)))
        self.size_bytes += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        return at


def _buffers(plan: _Plan, base_vaddr: int) -> U64Array:
    head = [0 if plan.valid_at is None else base_vaddr + plan.valid_at, base_vaddr + plan.values_at]
    if plan.data_at is not None:
        head.append(base_vaddr + plan.data_at)
    tail = [] if plan.sizes_at is None else [base_vaddr + plan.sizes_at]
    frames = plan.vaddrs if plan.vaddrs is not None else np.empty(0, np.uint64)
    return np.concatenate((np.array(head, np.uint64), frames, np.array(tail, np.uint64)))

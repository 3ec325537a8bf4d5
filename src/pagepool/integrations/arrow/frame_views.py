# SPDX-License-Identifier: MIT
"""Arrow's view layout in NumPy: 16 bytes for each value, that hold it or say where it is.

A length, then up to twelve bytes of value; or, of a longer one, its first four bytes, the number of a data buffer and
the offset in it. Only the arithmetic: whose memory it is, others know. Invariant: of a value no byte is read that is
not its own.

Source: https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagepool.xdp.driver import U8Array

__all__ = ["INLINE_BYTES", "make_views"]

INLINE_BYTES = 12
_VIEW = np.dtype([("length", "<i4"), ("prefix", "u1", 4), ("buffer", "<i4"), ("offset", "<i4")])

_Ints = npt.NDArray[np.int64]


def make_views(flat: U8Array, starts: _Ints, lengths: _Ints, buffers: _Ints | int, offsets: _Ints | int) -> U8Array:
    """Return ``(n, 16) uint8``, the views of values that lie in `flat`.

    Parameters
    ----------
    flat : (m,) uint8
        What the values are read from.
    starts, lengths : (n,) int64
        First byte of each in it, and bytes of each.
    buffers, offsets : int or (n,) int64
        Where a consumer finds each: number of a data buffer, and bytes from its start.
    """
    views = np.zeros((len(starts), 16), np.uint8)
    fields = views.view(_VIEW)[:, 0]
    fields["length"] = lengths
    fields["buffer"] = buffers
    fields["offset"] = offsets
    short = lengths <= INLINE_BYTES
    if not short.any():
        fields["prefix"] = flat[starts[:, None] + np.arange(4)]
        return views
    rows = (~short).nonzero()[0]
    fields["prefix"][rows] = flat[starts[rows, None] + np.arange(4)]
    views[short, 4:] = 0
    rows, columns = (short[:, None] & (np.arange(INLINE_BYTES) < lengths[:, None])).nonzero()
    views[rows, 4 + columns] = flat[starts[rows] + columns]
    return views

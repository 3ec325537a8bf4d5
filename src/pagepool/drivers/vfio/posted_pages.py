# SPDX-License-Identifier: MIT
"""Which page each descriptor of a ring holds, and whose it is.

Books only: no descriptor is written here. Frames that are sent may come from several pools (redirects), and
each page goes home to its own. Invariant: a slot holds one page or none, and a page leaves it once: to a
batch, or to its pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pagepool.xdp.driver import U32Array

__all__ = ["PostedPages"]

Slots = slice | npt.NDArray[np.intp] | npt.NDArray[np.uint32]


class PostedPages:
    """Pages by slot.

    Parameters
    ----------
    size : int
        Slots, as many as the ring has descriptors.

    Attributes
    ----------
    is_posted : (size,) bool
        Which slots hold a page.

    Notes
    -----
    Context: the caller locks.
    """

    def __init__(self, size: int) -> None:
        self.is_posted = np.zeros(size, np.bool_)
        self._ids: U32Array = np.zeros(size, np.uint32)
        self._owner = np.zeros(size, np.uint8)
        self._pools: list[Any] = []

    def hold(self, slots: Slots, pool: Any, ids: U32Array) -> None:
        """Write down that `slots` hold `ids` of `pool` now."""
        self._ids[slots] = ids
        self._owner[slots] = self._number(pool)
        self.is_posted[slots] = True

    def take(self, slots: Slots) -> U32Array:
        """Take the pages out of `slots`; they are the caller's. Return their ids in this order."""
        self.is_posted[slots] = False
        return self._ids[slots].copy()

    def put(self, slots: Slots) -> None:
        """Send the pages of `slots` home, each to its own pool."""
        owners = self._owner[slots]
        ids = self.take(slots)
        if not len(ids):
            return
        if (owners == owners[0]).all():
            self._pools[owners[0]].put_bulk(ids)
            return
        for number in np.unique(owners).tolist():
            self._pools[number].put_bulk(ids[owners == number])

    def put_all(self) -> None:
        """Send every page home; the device must be off."""
        self.put(self.is_posted.nonzero()[0])

    def _number(self, pool: Any) -> int:
        for number, known in enumerate(self._pools):
            if known is pool:
                return number
        if len(self._pools) == 255:  # pools come and go: forget those that have nothing here
            used = set(self._owner[self.is_posted].tolist())
            number = next(n for n in range(255) if n not in used)
            self._pools[number] = pool
            return number
        self._pools.append(pool)
        return len(self._pools) - 1

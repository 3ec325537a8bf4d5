# SPDX-License-Identifier: MIT
"""The two descriptor rings that a NIC and its driver share, laid out as an e1000's legacy descriptors.

Memory and two indices, no behaviour: the driver posts at `tail`, the NIC works at `head`, each writes only
its own. Invariant:
``0 <= tail - head <= size``; a descriptor belongs to the NIC from the moment `tail` passes it until its
status says DD.

Both indices count for ever and are masked on use, so that a full ring and an empty one differ. A run of
descriptors may wrap: `spans` gives the one or two slices of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RX_DESCRIPTOR", "STATUS_DD", "STATUS_EOP", "TX_DESCRIPTOR", "DescriptorRing"]

#: 16 bytes, little endian, as a device would read them.
RX_DESCRIPTOR = np.dtype(
    [
        ("dma_addr", "<u8"),
        ("length", "<u2"),
        ("checksum", "<u2"),
        ("status", "u1"),
        ("errors", "u1"),
        ("special", "<u2"),
    ]
)
TX_DESCRIPTOR = np.dtype(
    [
        ("dma_addr", "<u8"),
        ("length", "<u2"),
        ("checksum_offset", "u1"),
        ("command", "u1"),
        ("status", "u1"),
        ("checksum_start", "u1"),
        ("special", "<u2"),
    ]
)
STATUS_DD = 1  # descriptor done: it is the driver's again
STATUS_EOP = 2  # end of packet: the frame is whole
_DONE = bytes((STATUS_DD, STATUS_DD | STATUS_EOP))


class DescriptorRing:
    """A ring of descriptors.

    Parameters
    ----------
    size : int
        Entries, a power of two from 8 to 32768.
    dtype : dtype
        `RX_DESCRIPTOR` or `TX_DESCRIPTOR`.

    Attributes
    ----------
    descriptors : (size,) of `dtype`
        As the device reads them; `dma_addr`, `length` and `status` are views of their fields.
    head, tail : int
        Descriptors the NIC has done and the driver has posted, ever.
    """

    __slots__ = ("descriptors", "dma_addr", "head", "length", "mask", "size", "status", "tail")

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        if not 8 <= size <= 32768 or size & (size - 1):
            raise ValueError(f"a ring of {size} descriptors: it must be a power of two from 8 to 32768")
        self.size = size
        self.mask = size - 1
        self.descriptors = np.zeros(size, dtype)
        self.dma_addr: npt.NDArray[np.uint64] = self.descriptors["dma_addr"]
        self.length: npt.NDArray[np.uint16] = self.descriptors["length"]
        self.status: npt.NDArray[np.uint8] = self.descriptors["status"]
        self.head = 0
        self.tail = 0

    @property
    def nr_posted(self) -> int:
        """int : descriptors that are the NIC's now."""
        return self.tail - self.head

    def spans(self, first: int, n: int) -> tuple[slice, ...]:
        """Return the slices of `n` descriptors from index `first` on.

        None, one, or two where the run wraps.
        """
        at = first & self.mask
        if at + n <= self.size:
            return (slice(at, at + n),) if n else ()
        return slice(at, self.size), slice(0, at + n - self.size)

    def nr_done(self, first: int, limit: int) -> int:
        """Return how many descriptors from index `first` on have DD set, `limit` at most.

        In order, no gaps.
        """
        done = 0
        for span in self.spans(first, limit):
            # Bytes of the statuses at the front that have DD: an order faster than three array operations.
            raw = self.status[span].tobytes()
            done += len(raw) - len(raw.lstrip(_DONE))
            if raw[-1] not in _DONE:
                break
        return done

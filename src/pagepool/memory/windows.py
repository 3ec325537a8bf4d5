# SPDX-License-Identifier: MIT
"""Views over the committed part of an arena, and which of them are alive.

A window is the object behind a memoryview; it keeps the address space, and its registration here keeps the
slabs under it. Invariant: while a window is alive, `covered_bytes` is at least its length.
"""

from __future__ import annotations

import ctypes
import weakref

from pagepool.memory.reservation import Reservation


class Windows:
    """The windows of one reservation.

    Context: the caller serialises; a window itself may die in any thread.
    """

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._alive: list[weakref.ref[ctypes.Array[ctypes.c_ubyte]]] = []

    def open(self, size_bytes: int) -> memoryview:
        """Return the first `size_bytes` bytes of the reservation, all of which must be mapped."""
        window = (ctypes.c_ubyte * size_bytes).from_address(self._reservation.base_vaddr)
        # An array type is cached for its length, so the instance must hold the memory.
        setattr(window, "reservation", self._reservation)  # noqa: B010
        self._alive.append(weakref.ref(window))
        return memoryview(window).cast("B")

    @property
    def covered_bytes(self) -> int:
        """Length of the longest window that is alive."""
        alive = [(ref, window) for ref in self._alive if (window := ref()) is not None]
        self._alive = [ref for ref, _ in alive]
        return max((ctypes.sizeof(window) for _, window in alive), default=0)

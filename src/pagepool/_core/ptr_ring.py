# SPDX-License-Identifier: MIT
"""The ptr_ring: a bounded FIFO of page ids, any thread produces, one thread consumes.

The kernel's ring marks a free entry by a NULL pointer; ids have no NULL, so this one keeps two free-running indexes
on separate cache lines. Producers hold a spin lock for a batch, the consumer none.

Invariant: ``head - tail`` (modulo 2**32) is the number of entries and never more than `size`; an entry is written
before the ``head`` that shows it, and read before the ``tail`` that gives it away.
"""

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.pagepool._core.atomic import (
    pp_add64,
    pp_load32,
    pp_load32_acquire,
    pp_lock,
    pp_store32_release,
    pp_unlock,
)


class PtrRing:
    """Ring of `size` ids.

    Parameters
    ----------
    size : int
        Entries, 1 to 16384; need not be a power of two.
    """

    def __cinit__(self, size: uint32_t):
        if size == 0 or size > 16384:
            raise ValueError(f"size {size} is out of range: 1 to 16384 entries")
        slots: uint32_t = 1
        while slots < size:
            slots *= 2
        self.size = size
        self.mask = slots - 1
        self.slots = cython.cast(cython.pointer[uint32_t], malloc(slots * cython.sizeof(uint32_t)))
        if self.slots == cython.NULL:
            raise MemoryError("no memory for the ptr_ring")

    def __dealloc__(self):
        free(self.slots)

    def count(self):
        # Exact for the consumer. Others look at tail first: the head of a later moment is never behind it, though it
        # may be more than a ring ahead. Acquire pairs with the release in push_locked: ids counted here can be read.
        tail: uint32_t = pp_load32_acquire(cython.address(self.tail))
        there: uint32_t = pp_load32_acquire(cython.address(self.head)) - tail
        return there if there < self.size else self.size

    def room_locked(self):
        # Acquire pairs with the release in consume_bulk: the entries that this calls free have been read.
        return self.size - (pp_load32(cython.address(self.head)) - pp_load32_acquire(cython.address(self.tail)))

    def push_locked(self, id):
        self.slots[self.head & self.mask] = id
        pp_store32_release(cython.address(self.head), self.head + 1)

    def consume_bulk(self, out, n):
        there: uint32_t = self.count()
        take: uint32_t = n if n < there else there
        i: uint32_t
        for i in range(take):
            out[i] = self.slots[(self.tail + i) & self.mask]
        pp_store32_release(cython.address(self.tail), self.tail + take)
        return take

    # -- for Python ----------------------------------------------------------------------------------------------

    def _must_be_free(self):
        if self.is_pools:
            raise TypeError("this ring is a pool's: pages go in by put_bulk and come out by alloc_bulk")
        return 0

    def produce(self, ids: list) -> int:
        """Append ids until the ring is full.

        Returns
        -------
        int
            How many went in.

        Raises
        ------
        TypeError
            The ring is a pool's, as in `consume`.

        Notes
        -----
        Context: any thread; one lock for the whole list.
        """
        self._must_be_free()
        values = [int(value) for value in ids]
        done: uint32_t = 0
        for value in values:
            if not 0 <= value < 0xFFFFFFFF:
                raise ValueError(f"{value} is no page id")
        pp_lock(cython.address(self.lock))
        try:
            for value in values:
                if self.closed or self.room_locked() == 0:
                    pp_add64(cython.address(self.nr_full), 1)
                    break
                self.push_locked(value)
                done += 1
            self.nr_produced += done
        finally:
            pp_unlock(cython.address(self.lock))
        return done

    def consume(self, n: int) -> list:
        """Take up to `n` ids, oldest first.

        Notes
        -----
        Context: one thread at a time.
        """
        self._must_be_free()
        taken = []
        one: uint32_t = 0
        while len(taken) < n and self.consume_bulk(cython.address(one), 1):
            taken.append(one)
        return taken

    def __len__(self) -> int:
        return self.count()

    def __reduce__(self):
        raise TypeError("a PtrRing cannot be pickled")

    def __repr__(self) -> str:
        return f"<PtrRing: {self.count()} of {self.size} ids>"

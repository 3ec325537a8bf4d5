# SPDX-License-Identifier: MIT
"""The borrower's end: takes descriptors out of one ring, gives pages back through the other.

It owns no memory of the arena and believes nothing that it reads: each word of the ring is read once, and what does not
lie in a page of the mapping is counted and dropped. So a hostile lender can show it nonsense, but not make it touch
anything that is not mapped.

Invariant: a page is given back as often as it was lent to us, never more; `lent` counts those that were not.
"""

import cython
from cython.cimports.cpython.buffer import (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cython.cimports.cpython.object import PyObject
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.pagepool._core.atomic import (
    pp_fence,
    pp_load32,
    pp_load32_acquire,
    pp_load64,
    pp_lock,
    pp_store32,
    pp_store32_release,
    pp_swap32_gil,
    pp_thread_id,
    pp_unlikely,
    pp_unlock,
)
from cython.cimports.pagepool._core.tensor import export_capsule
from cython.cimports.pagepool.shared._ring_layout import (
    AT_BORROWER_BELL,
    AT_GIVEN,
    AT_LENDER_BELL,
    AT_MAGIC,
    AT_SENT,
    AT_SLOTS,
    AT_STATE,
    AT_TAKEN,
    AT_VERSION,
    LINK_CLOSED,
    LINK_REVOKED,
    MAX_SLOTS,
    MIN_SLOTS,
    RING_MAGIC,
    RING_VERSION,
    ring_bell,
    ring_bytes,
    ring_place,
    ring_word,
    shared_desc_t,
)

from pagepool._core.tensor import CPU_DEVICE, array_interface
from pagepool.errors import DeadPageError, DoublePutError, ForeignPageError, PagePoolError, WrongThreadError

if not cython.compiled:
    raise ImportError("pagepool.shared._borrower is compiled: run `make build`, or `pip install .`")

CLOSED = LINK_CLOSED
REVOKED = LINK_REVOKED


class SharedRingError(PagePoolError):
    """The other process has written into a ring what cannot be; nothing more is taken from it."""


class Borrower:
    """The borrower's end of one pair of rings.

    Parameters
    ----------
    base_vaddr, size_bytes : int
        The arena, as it is mapped here.
    order : int
        log2 of the pages in one object.
    writable : bool
        Whether the mapping can be written to.
    rings_vaddr, rings_bytes : int
        The rings, as they are mapped here, for writing.
    bell_fd : int
        A socket to the lender, which is closed with the last page; -1 for one that polls.
    keep_alive : object
        The mappings: a `MappedRange`, or a tuple of them; not what refers to the borrower itself.

    Raises
    ------
    SharedRingError
        There are no rings there, or not of this version, or more than the memory holds.

    Notes
    -----
    Context: `take` and `arm` by one thread, the owner: the first that takes, until another calls `claim`. Giving back
    by any thread, under a lock.
    """

    def __cinit__(
        self,
        base_vaddr: uintptr_t,
        size_bytes: uint64_t,
        order: uint32_t,
        writable,
        rings_vaddr: uintptr_t,
        rings_bytes: uint64_t,
        bell_fd: int = -1,
        keep_alive=None,
    ):
        self.bell_fd = -1
        words: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], rings_vaddr)
        if rings_vaddr == 0 or rings_vaddr & 4095 or rings_bytes < 4096:
            raise SharedRingError(f"no rings in {rings_bytes} bytes at vaddr {rings_vaddr:#x}")
        # Pairs with the release in Link: the rest of the page is written.
        magic: uint32_t = pp_load32_acquire(words + AT_MAGIC // 4)
        version: uint32_t = pp_load32(words + AT_VERSION // 4)
        slots: uint32_t = pp_load32(words + AT_SLOTS // 4)
        if magic != RING_MAGIC:
            raise SharedRingError(f"no rings here: magic {magic:#x}, expected {RING_MAGIC:#x}")
        if version != RING_VERSION:
            raise SharedRingError(f"rings of version {version}; this process knows version {RING_VERSION}")
        if not MIN_SLOTS <= slots <= MAX_SLOTS or slots & (slots - 1) or ring_bytes(slots) > rings_bytes:
            raise SharedRingError(f"rings of {slots} entries do not fit {rings_bytes} bytes")
        if order > 9 or base_vaddr == 0 or base_vaddr & 4095 or size_bytes < (4096 << order):
            raise ValueError(f"an arena of {size_bytes} bytes at vaddr {base_vaddr:#x}, order {order}")
        if size_bytes >> 12 >= 0xFFFFFFFF:
            raise ValueError(f"an arena of {size_bytes} bytes: ids have 32 bits")
        self.base_vaddr = base_vaddr
        self.nr_pages = cython.cast(uint32_t, size_bytes >> 12)
        self.object_bytes = 4096 << order
        self.order_mask = (1 << order) - 1
        self.writable = bool(writable)
        self.keep_alive = cython.cast(cython.pointer[PyObject], keep_alive)
        Py_INCREF(keep_alive)
        ring_place(cython.address(self.ring), rings_vaddr, slots)
        self.offset = -1
        self.held = cython.cast(cython.pointer[uint16_t], calloc(self.nr_pages, 2))
        if self.held == cython.NULL:
            raise MemoryError("no memory for the borrowed pages' records")
        self.bell_fd = bell_fd

    def __dealloc__(self):
        if self.held != cython.NULL:
            self._hang_up_locked()
        free(self.held)
        if self.keep_alive != cython.NULL:
            Py_DECREF(cython.cast(object, self.keep_alive))

    def _hang_up_locked(self):
        if self.bell_fd >= 0:
            close_fd(self.bell_fd)
            self.bell_fd = -1

    # -- taking --------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Make the calling thread the one that takes; the old one must be done with it."""
        self.owner = pp_thread_id()

    @property
    def is_owner(self) -> bool:
        """Whether the calling thread takes."""
        return self.owner == pp_thread_id()

    def take(self, block, budget: uint32_t):
        """Take up to `budget` descriptors.

        Parameters
        ----------
        block : writable buffer, (6, n) uint32, n >= budget
            Gets ids, lengths, offsets and queues, a row each, and in the last two rows, as (n,) uint64, nanoseconds of
            ``CLOCK_MONOTONIC``. Offsets are written only where they differ; else `offset` has them all.
        budget : int

        Returns
        -------
        int
            How many are in the rows; their pages are the caller's until `put_bulk`.

        Raises
        ------
        WrongThreadError
            Another thread takes.
        SharedRingError
            The lender's index cannot be.

        Notes
        -----
        Context: the owner. No system call. From a budget of 128 on, other threads run meanwhile (no GIL).
        """
        view: Py_buffer
        n: cython.longlong
        if self.owner != pp_thread_id():
            if self.owner:
                raise WrongThreadError("these rings are taken from by another thread; claim() moves them")
            self.owner = pp_thread_id()
        if self.closed or self.abandoned:
            return 0
        PyObject_GetBuffer(block, cython.address(view), PyBUF_WRITABLE)
        try:
            row: uint32_t = cython.cast(uint32_t, view.len // 24)
            if budget > row or cython.cast(uintptr_t, view.buf) & 7:
                raise ValueError(f"a budget of {budget} needs a block of (6, {budget}) uint32, aligned to 8 bytes")
            at: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], view.buf)
            to: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], at + 4 * row)
            if budget >= NOGIL_FRAMES:
                with cython.nogil:
                    n = self._take(at, at + row, at + 2 * row, at + 3 * row, to, budget)
            else:
                n = self._take(at, at + row, at + 2 * row, at + 3 * row, to, budget)
        finally:
            PyBuffer_Release(cython.address(view))
        if n < 0:
            raise SharedRingError("the other process has moved its index by more than the ring holds")
        return n

    def _take(self, ids, lengths, offsets, queues, stamps, budget):
        n: uint32_t
        i: uint32_t
        j: uint32_t
        k: uint32_t = 0
        id: uint32_t
        at: uint32_t
        length: uint32_t
        first: uint32_t = 0
        before: uint32_t
        mixed: cython.bint = False
        entry: cython.pointer[shared_desc_t]
        # All under the lock: a close by another thread takes what is left, and what it took is not ours to count.
        pp_lock(cython.address(self.lock))
        # Acquire pairs with the release in Link._publish: the descriptors below are whole.
        n = pp_load32_acquire(ring_word(cython.address(self.ring), AT_SENT)) - self.taken_mine
        if pp_unlikely(n > self.ring.size) and not self.closed:
            self.bad_indexes += 1
            pp_unlock(cython.address(self.lock))
            return -1
        if self.closed or n == 0:
            pp_unlock(cython.address(self.lock))
            return 0
        if n > budget:
            n = budget
        before = self.given_mine
        for i in range(n):
            entry = self.ring.sent + ((self.taken_mine + i) & self.ring.mask)
            id = pp_load32(cython.address(entry.id))  # each word once: it may change while we look
            at = pp_load32(cython.address(entry.offset))
            length = pp_load32(cython.address(entry.length))
            if pp_unlikely(
                id >= self.nr_pages
                or id & self.order_mask
                or self.nr_pages - id <= self.order_mask
                or self.held[id] == HELD_MAX
            ):
                self.bad_descriptors += 1
                continue
            self.held[id] += 1
            self.lent += 1
            if pp_unlikely(length > self.object_bytes or at > self.object_bytes - length):
                self.bad_descriptors += 1
                self._give_locked(id)
                continue
            if k == 0:
                first = at
            elif pp_unlikely(at != first):
                if not mixed:
                    mixed = True
                    for j in range(k):
                        offsets[j] = first
            if mixed:
                offsets[k] = at
            ids[k] = id
            lengths[k] = length
            queues[k] = pp_load32(cython.address(entry.queue))
            stamps[k] = pp_load64(cython.address(entry.timestamp_ns))
            k += 1
        self.taken_mine += n
        self.taken += k
        self.offset = -1 if mixed else first
        pp_store32_release(ring_word(cython.address(self.ring), AT_TAKEN), self.taken_mine)
        if self.given_mine != before:
            self._publish_locked()
        pp_unlock(cython.address(self.lock))
        return k

    def arm(self) -> bool:
        """Ask to be woken by the next descriptor; false if there is one already.

        Notes
        -----
        Context: the owner, between finding nothing and sleeping on the socket.
        """
        if self.abandoned:
            return True
        pp_store32(ring_word(cython.address(self.ring), AT_BORROWER_BELL), 1)
        pp_fence()  # pairs with the one in Link._publish
        return pp_load32(ring_word(cython.address(self.ring), AT_SENT)) == self.taken_mine

    def fileno(self) -> int:
        """The connection, readable when the lender rings or hangs up; -1 if there is none."""
        return self.bell_fd

    def is_connected(self) -> bool:
        """Read away what woke us; false if the other side has hung up. Never waits."""
        bells: cython.char[64]
        n: cython.longlong = 1
        looks: cython.int
        connected: cython.bint = True
        # Under the lock: the last page that goes back may close the descriptor. Not until it is dry: whoever rings
        # faster than we read would keep us here for ever. What is left wakes us again.
        pp_lock(cython.address(self.lock))
        for looks in range(MOST_BELLS):
            if self.bell_fd < 0:
                break
            n = recv(self.bell_fd, bells, cython.sizeof(bells), MSG_DONTWAIT)
            if n == 0 or (n < 0 and errno != EINTR):
                connected = n < 0 and errno == EAGAIN
                break
        pp_unlock(cython.address(self.lock))
        return connected

    # -- giving back ---------------------------------------------------------------------------------------------

    def put_bulk(self, ids, dma_sync_size: int = -1):
        """Give pages back.

        Parameters
        ----------
        ids : buffer of uint32

        Returns
        -------
        int
            How many; ids that we have not are passed over, and counted in `rejected`.

        Notes
        -----
        Context: any thread. One system call at most, if the lender asked to be woken.
        """
        view: Py_buffer
        done: uint32_t
        PyObject_GetBuffer(ids, cython.address(view), PyBUF_SIMPLE)
        try:
            if view.itemsize != 4 and view.len:
                raise TypeError(f"ids must be a contiguous buffer of uint32, not of {view.itemsize}-byte items")
            at: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], view.buf)
            n: uint32_t = cython.cast(uint32_t, view.len // 4)
            if n >= NOGIL_FRAMES:
                with cython.nogil:
                    done = self._give(at, n)
            else:
                done = self._give(at, n)
        finally:
            PyBuffer_Release(cython.address(view))
        return done

    def _give(self, ids, n):
        i: uint32_t
        id: uint32_t
        done: uint32_t = 0
        if self.abandoned:
            return 0
        pp_lock(cython.address(self.lock))
        for i in range(n):
            id = pp_load32(ids + i)  # once: the array is the caller's, whose other threads may write to it
            if pp_unlikely(id >= self.nr_pages or not self.held[id]):
                self.rejected += 1
                continue
            self._give_locked(id)
            done += 1
        if done:
            self._publish_locked()
            if self.closed and self.lent == 0:
                self._hang_up_locked()
        pp_unlock(cython.address(self.lock))
        return done

    def _give_locked(self, id):
        # There is room: the lender lends no more pages than the ring has entries. One that does loses its own pages.
        pp_store32(self.ring.given + (self.given_mine & self.ring.mask), id)
        self.given_mine += 1
        self.given += 1
        self.held[id] -= 1
        self.lent -= 1

    def _publish_locked(self):
        pp_store32_release(ring_word(cython.address(self.ring), AT_GIVEN), self.given_mine)
        pp_fence()  # pairs with the one in Link.arm
        if pp_unlikely(pp_load32(ring_word(cython.address(self.ring), AT_LENDER_BELL)) == 1):
            pp_store32(ring_word(cython.address(self.ring), AT_LENDER_BELL), 0)
            ring_bell(self.bell_fd)
            self.bells += 1

    def page(self, id: int, offset: int = 0, length: int = -1):
        """Make a handle for a page that the caller has; the handle owns it from now on.

        Raises
        ------
        ForeignPageError
            We have not got that page.
        """
        if not 0 <= id < self.nr_pages or not self.held[cython.cast(uint32_t, id)]:
            raise ForeignPageError(f"page {id} is not lent to this process")
        if length < 0:
            length = max(0, self.object_bytes - offset)
        if offset < 0 or offset + length > self.object_bytes:
            raise ValueError(f"offset {offset} and length {length} do not fit {self.object_bytes} bytes")
        page: BorrowedPage = BorrowedPage.__new__(BorrowedPage)
        page.home = cython.cast(cython.pointer[PyObject], self)
        Py_INCREF(self)
        page.id = id
        page.offset = offset
        page.length = length
        page.live = 1
        page.owed = 1
        return page

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more and give back what was never taken; hang up when the last page is back. Idempotent.

        Notes
        -----
        Context: any thread, when nobody takes any more.
        """
        left: uint32_t
        id: uint32_t
        pp_lock(cython.address(self.lock))
        if not self.closed and not self.abandoned:
            left = pp_load32_acquire(ring_word(cython.address(self.ring), AT_SENT)) - self.taken_mine
            if left > self.ring.size:
                left = 0
            while left:
                id = pp_load32(cython.address((self.ring.sent + (self.taken_mine & self.ring.mask)).id))
                self.taken_mine += 1
                left -= 1
                if id < self.nr_pages and self.held[id] != HELD_MAX:
                    self.held[id] += 1
                    self.lent += 1
                    self._give_locked(id)
            pp_store32_release(ring_word(cython.address(self.ring), AT_TAKEN), self.taken_mine)
            self._publish_locked()
        self.closed = True
        if self.lent == 0:
            self._hang_up_locked()
        pp_unlock(cython.address(self.lock))

    def abandon(self) -> None:
        """In a forked child: the rings are the parent's, touch them no more; its memory can still be read."""
        self.abandoned = True
        self.closed = True
        self.lock = 0  # a thread of the parent may have held it
        self._hang_up_locked()

    @property
    def state(self) -> int:
        """What the lender says: 0 open, `CLOSED`, or `REVOKED`."""
        return pp_load32_acquire(ring_word(cython.address(self.ring), AT_STATE))

    @property
    def backlog(self) -> int:
        """Descriptors that wait to be taken, as far as the lender says."""
        there: uint32_t = pp_load32(ring_word(cython.address(self.ring), AT_SENT)) - self.taken_mine
        return there if there <= self.ring.size else 0


class BorrowedPage:
    """A page of another process that is kept: a handle and a buffer, as `pagepool.Page`.

    Not made by calling the class: ``batch.keep()`` gives them.

    Notes
    -----
    The buffer is read-only where the memory is. A view keeps the page: it is given back when it was put, or the handle
    has died, and the last view is gone.

    Context: any thread.
    """

    def __init__(self):
        raise TypeError("a BorrowedPage comes from batch.keep(), it is not made")

    def __dealloc__(self):
        if self.home != cython.NULL:
            self._give_back()
            Py_DECREF(home_of(self))

    def _give_back(self):
        if self.owed:
            self.owed = 0
            home_of(self)._give(cython.address(self.id), 1)
        return 0

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        with cython.critical_section(self):
            self._must_live()
            PyBuffer_FillInfo(
                buffer,
                self,
                cython.cast(
                    cython.p_void,
                    home_of(self).base_vaddr + (cython.cast(uintptr_t, self.id) << 12) + self.offset,
                ),
                self.length,
                not home_of(self).writable,
                flags,
            )
            self.exports += 1

    def __releasebuffer__(self, buffer: cython.pointer[Py_buffer]):
        with cython.critical_section(self):
            self.exports -= 1
            if self.exports == 0 and not self.live:
                self._give_back()

    def _must_live(self):
        if not self.live:
            raise DeadPageError(f"page {self.id} was put; this handle is dead")
        return 0

    def put(self) -> None:
        """Give the page back; views that are alive keep it until the last of them goes.

        Raises
        ------
        DoublePutError
            It was put already.
        """
        if not pp_swap32_gil(cython.address(self.live), 0):
            raise DoublePutError(f"page {self.id} was put already")
        with cython.critical_section(self):
            if self.exports == 0:
                self._give_back()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        memoryview(self)[key] = value

    @property
    def vaddr(self) -> int:
        """Where this process finds its first byte."""
        self._must_live()
        return home_of(self).base_vaddr + (cython.cast(uintptr_t, self.id) << 12) + self.offset

    @property
    def pool(self):
        """The `Borrower` it came from."""
        return home_of(self)

    @property
    def is_live(self) -> bool:
        """Whether this handle still holds its page."""
        return self.live != 0

    @property
    def readonly(self) -> bool:
        """Whether the memory was lent for reading."""
        return not self.pool.writable

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export the frame as a DLPack capsule; as `pagepool.Page`, and read-only where the memory is.

        A library that does not heed the flag (torch) must be given a copy: a store would kill the process.
        """
        return export_capsule(self, CPU_DEVICE, stream, max_version, dl_device, copy, False)

    def __dlpack_device__(self):
        """Return the CPU, ``(1, 0)``."""
        return CPU_DEVICE

    @property
    def __array_interface__(self) -> dict:
        """NumPy's array interface, version 3; its ``data`` holds the page."""
        return array_interface(self)

    def __enter__(self):
        self._must_live()
        return self

    def __exit__(self, *exc):
        if self.live:
            self.put()

    def __reduce__(self):
        raise TypeError("a BorrowedPage is memory of another process and cannot be pickled; copy it with bytes(page)")

    def __repr__(self) -> str:
        if not self.live:
            return f"<BorrowedPage {self.id}: dead>"
        return f"<BorrowedPage {self.id}: {self.length} bytes at vaddr {self.vaddr:#x}>"

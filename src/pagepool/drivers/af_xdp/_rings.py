# SPDX-License-Identifier: MIT
"""The four rings of one AF_XDP socket: frames in, pages out, and no Python object per frame.

One `XskRings.poll` brings home what was sent, takes what came in and gives the kernel new pages. It makes no
decision and opens no socket. Indices are published with release and read with acquire, as
Documentation/networking/af_xdp.rst and the kernel's ``net/xdp/xsk_queue.h`` ask for: the kernel's side pairs
with ours.

Invariant: a page is in at most one of our rings, and `where` says which; a descriptor of the kernel's that
contradicts it is counted and dropped, never believed. So nothing that comes out of a ring can name a page
twice or none of ours.
"""

import time

import cython
from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.libc.errno import EAGAIN, EBUSY, EINTR, ENOBUFS, errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memset
from cython.cimports.pagepool._core.arena import PG_LENT, pg_slot, pg_state
from cython.cimports.pagepool._core.atomic import (
    pp_add32,
    pp_add32_total,
    pp_add64,
    pp_load32,
    pp_load32_acquire,
    pp_load32_total,
    pp_load64,
    pp_lock,
    pp_store32_release,
    pp_store32_total,
    pp_thread_id,
    pp_unlikely,
    pp_unlock,
)
from cython.cimports.pagepool._core.tiers import Tiers

from pagepool.errors import PoolBusyError, WrongThreadError

if not cython.compiled:
    raise ImportError("pagepool.drivers.af_xdp._rings is compiled: run `make build`, or `pip install .`")


class XskRings:
    """The rings of a socket, joined to the pool whose pages they carry.

    Parameters
    ----------
    pool : PagePool
        Order 0; its arena is the socket's UMEM, from its first byte on.
    fd : int
        The socket.
    rx, tx, fill, completion : RingMap or None
        Its mappings; they must outlive every call but `close`.
    need_wakeup : bool
        The socket was bound with ``XDP_USE_NEED_WAKEUP``: kick only when the ring asks.
    busy_poll : bool
        Kick the receive side whenever it is empty, so that the kernel polls the device in our thread.

    Notes
    -----
    Context: `poll` and `take_back` by the pool's owner; `transmit`, `kick` and `reap` by any thread, and at any time:
    once the rings are closed they do nothing.
    """

    def __cinit__(self, pool: Tiers, fd, rx, tx, fill, completion, need_wakeup=True, busy_poll=False):
        if pool is None or pool.object_bytes != CHUNK_BYTES:
            raise ValueError("an AF_XDP pool has pages of 4096 bytes (order 0)")
        self.pool = pool
        self.fd = fd
        self.nr_pages = pool.nr_pages
        self.need_wakeup = need_wakeup
        self.busy_poll = busy_poll
        self.sources = {}
        self.offset = -1
        _join(cython.address(self.rx), rx, False)
        _join(cython.address(self.tx), tx, True)
        _join(cython.address(self.fill), fill, True)
        _join(cython.address(self.completion), completion, False)
        self.where = cython.cast(cython.pointer[uint8_t], calloc(self.nr_pages, 1))
        self.strangers = cython.cast(cython.pointer[uint32_t], malloc(4 * (self.completion.size + BURST)))
        if self.where == cython.NULL or self.strangers == cython.NULL:
            raise MemoryError("no memory for the page states")

    def __dealloc__(self):
        free(self.where)
        free(self.strangers)

    # -- receive -----------------------------------------------------------------------------------------

    def poll(self, block, budget: uint32_t):
        """Bring home what was sent, take up to `budget` frames, give the kernel new pages.

        Parameters
        ----------
        block : writable buffer, (3, >= budget) uint32
            Gets ids in its first row, lengths (bytes) in its second, offsets in its page (bytes) in its
            third. The third is written only where the offsets differ; else `offset` has them all.
        budget : int
            Frames.

        Returns
        -------
        int
            Frames taken. The caller holds their pages now.

        Notes
        -----
        Context: the owner. From a budget of 2048 on, other threads run meanwhile (no GIL); below, it keeps the
        GIL: to let go of it wakes a thread that waits, as a rule in vain. At most one system call,
        and only where the kernel asks for it or `busy_poll` does.
        """
        view: Py_buffer
        n: uint32_t
        at: cython.pointer[uint32_t]
        row: uint32_t
        self._enter()
        try:
            PyObject_GetBuffer(block, cython.address(view), PyBUF_WRITABLE)
        except BaseException:
            self._leave()
            raise
        try:
            row = cython.cast(uint32_t, view.len // 12)
            if budget > row:
                raise ValueError(f"a budget of {budget} frames needs a block of {12 * budget} bytes, not {view.len}")
            at = cython.cast(cython.pointer[uint32_t], view.buf)
            self.pool.enter_owner()
            if budget >= NOGIL_FRAMES or self.busy_poll:
                with cython.nogil:
                    n = self._run(at, at + row, at + 2 * row, budget)
            else:
                n = self._run(at, at + row, at + 2 * row, budget)
            try:
                self.pool.leave_owner()
                if self.nr_strangers:
                    self._send_home()
            except BaseException:  # a hook of the pool's, or Ctrl-C: the caller will not hear of these frames
                self.pool.put_ids(at, n, -1, False)
                raise
        finally:
            PyBuffer_Release(cython.address(view))
            self._leave()
        return n

    def _run(self, ids, lengths, offsets, budget):
        n: uint32_t
        self._reap(True)
        n = self._take(ids, lengths, offsets, budget)
        self._fill_up()
        self._kick_rx()
        if n:
            self.empty_polls = 0
        else:
            self.empty_polls += 1
        return n

    def _take(self, ids, lengths, offsets, budget):
        # The rx ring. Acquire pairs with the kernel's release of the producer: the descriptors below are
        # whole.
        n: uint32_t
        i: uint32_t
        k: uint32_t = 0
        id: uint32_t
        at: uint32_t
        length: uint32_t
        addr: uint64_t
        first: uint32_t = 0
        mixed: cython.bint = False
        desc: cython.pointer[xsk_desc_t]
        entries: cython.pointer[xsk_desc_t] = cython.cast(cython.pointer[xsk_desc_t], self.rx.entries)
        if self.rx.size == 0:
            return 0
        n = pp_load32_acquire(self.rx.producer) - self.rx.mine
        if n > budget:
            n = budget
        for i in range(n):
            desc = entries + ((self.rx.mine + i) & self.rx.mask)
            addr = pp_load64(cython.address(desc.addr))  # once, as the length: what was judged is what is used
            length = pp_load32(cython.address(desc.len))
            if pp_unlikely(addr >> CHUNK_SHIFT >= self.nr_pages):
                pp_add64(cython.address(self.bad_descriptors), 1)
                continue
            id = cython.cast(uint32_t, addr >> CHUNK_SHIFT)
            at = cython.cast(uint32_t, addr & (CHUNK_BYTES - 1))
            if pp_unlikely(self.where[id] != AT_RX):
                pp_add64(cython.address(self.bad_descriptors), 1)
                continue
            self.where[id] = AT_REST
            if pp_unlikely(length > CHUNK_BYTES - at):
                pp_add64(cython.address(self.bad_descriptors), 1)
                self.pool.put_ids(cython.address(id), 1, -1, True)
                continue
            if k == 0:
                first = at
            elif pp_unlikely(at != first):
                mixed = True
            ids[k] = id
            lengths[k] = length
            offsets[k] = at
            k += 1
        if n:
            self.rx.mine += n
            # Release pairs with the kernel's acquire: it may write over these entries now.
            pp_store32_release(self.rx.consumer, self.rx.mine)
        self.rx_frames += k
        self.offset = -1 if mixed else first
        return k

    def _fill_up(self):
        # The fill ring, from the pool. The kernel masks the offset to its chunk, so the page's first byte
        # will do.
        ids: uint32_t[BURST]
        room: uint32_t
        want: uint32_t
        before: uint32_t
        got: uint32_t
        i: uint32_t
        filled: uint32_t = 0
        entries: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], self.fill.entries)
        if self.fill.size == 0:
            return 0
        room = self.fill.size - (self.fill.mine - pp_load32_acquire(self.fill.consumer))
        while room:
            want = room if room < BURST else BURST
            before = self.fill.mine
            got = self.pool.alloc_ids(ids, want)
            if pp_unlikely(self.fill.mine != before):  # a hook of the pool's has polled: the room is another
                self.pool.put_ids(ids, got, -1, True)
                break
            for i in range(got):
                self.where[ids[i]] = AT_RX
                entries[(self.fill.mine + i) & self.fill.mask] = cython.cast(uint64_t, ids[i]) << CHUNK_SHIFT
            self.fill.mine += got
            pp_store32_release(self.fill.producer, self.fill.mine)
            filled += got
            room -= got
            if got < want:
                self.fill_short += 1
                break
        return filled

    def fill_up(self) -> int:
        """Give the kernel pages until the fill ring is full; return how many. Context: the owner."""
        filled: uint32_t
        self._enter()
        try:
            self.pool.enter_owner()
            filled = self._fill_up()
            self.pool.leave_owner()
        finally:
            self._leave()
        return filled

    def _kick_rx(self):
        if self.fill.size and (
            pp_load32(self.fill.flags) & RING_NEED_WAKEUP
            or (self.busy_poll and pp_load32(self.rx.producer) == self.rx.mine)
        ):
            self.rx_kicks += 1
            recvfrom(self.fd, cython.NULL, 0, MSG_DONTWAIT, cython.NULL, cython.NULL)

    # -- transmit ----------------------------------------------------------------------------------------

    def transmit(self, ids, lengths, offsets, source: Tiers = None) -> int:
        """Queue frames for sending; `kick` sends them.

        Parameters
        ----------
        ids, lengths, offsets : buffers of uint32, (n,)
            Page, bytes of the frame, and bytes from the page's first byte to the frame's.
        source : PagePool, optional
            The pool the pages are lent by and go back to, over the same arena; this queue's own by default.

        Returns
        -------
        int
            How many of the first were taken. It ends where the ring is full, and at a page that is not lent
            by the pool, is in a ring already, or whose frame does not lie in it. 0 when closed.

        Notes
        -----
        Context: any thread.
        """
        a: Py_buffer
        b: Py_buffer
        c: Py_buffer
        n: uint32_t
        done: uint32_t = 0
        if source is None:
            source = self.pool
        if source.arena is not self.pool.arena:
            raise ValueError("the pages are of another arena: this device cannot reach them")
        PyObject_GetBuffer(ids, cython.address(a), PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(lengths, cython.address(b), PyBUF_SIMPLE)
            try:
                PyObject_GetBuffer(offsets, cython.address(c), PyBUF_SIMPLE)
                try:
                    n = cython.cast(uint32_t, min(a.len, b.len, c.len) // 4)
                    if self._enter_open():
                        if source is not self.pool and self.sources.get(source.slot) is not source:
                            self.sources[source.slot] = source
                        done = self._submit(
                            cython.cast(cython.pointer[uint32_t], a.buf),
                            cython.cast(cython.pointer[uint32_t], b.buf),
                            cython.cast(cython.pointer[uint32_t], c.buf),
                            n,
                            source.slot,
                        )
                        self._leave()
                finally:
                    PyBuffer_Release(cython.address(c))
            finally:
                PyBuffer_Release(cython.address(b))
        finally:
            PyBuffer_Release(cython.address(a))
        return done

    def _submit(self, ids, lengths, offsets, n, slot):
        room: uint32_t
        done: uint32_t = 0
        id: uint32_t
        at: uint32_t
        length: uint32_t
        word: uint64_t
        desc: cython.pointer[xsk_desc_t]
        entries: cython.pointer[xsk_desc_t] = cython.cast(cython.pointer[xsk_desc_t], self.tx.entries)
        if self.tx.size == 0:
            return 0
        pp_lock(cython.address(self.tx_lock))
        room = self.tx.size - (self.tx.mine - pp_load32_acquire(self.tx.consumer))
        while done < n and done < room:
            id = pp_load32(ids + done)  # each once: the arrays are the caller's, who may write to them
            at = pp_load32(offsets + done)
            length = pp_load32(lengths + done)
            if id >= self.nr_pages or self.where[id] != AT_REST:
                break
            word = pp_load64(cython.address(self.pool.pages[id].word))
            if pg_state(word) != PG_LENT or pg_slot(word) != slot:
                break
            if at > CHUNK_BYTES or length > CHUNK_BYTES - at:
                break
            if length < MIN_TX_BYTES:
                break
            self.where[id] = AT_TX
            desc = entries + ((self.tx.mine + done) & self.tx.mask)
            desc.addr = (cython.cast(uint64_t, id) << CHUNK_SHIFT) + at
            desc.len = length
            desc.options = 0
            done += 1
        if done:
            self.tx.mine += done
            self.tx_frames += done
            # Release pairs with the kernel's acquire of the producer: it sees whole descriptors.
            pp_store32_release(self.tx.producer, self.tx.mine)
        pp_unlock(cython.address(self.tx_lock))
        return done

    def kick(self) -> int:
        """Have the kernel send what is queued.

        Returns
        -------
        int
            0, or the errno of a refusal that no retry mends (``ENETDOWN``, ``ENXIO``: the device is down or
            gone).

        Notes
        -----
        Context: any thread; without the GIL. In copy mode the frames are sent inside this call; what finds no
        room stays queued for the next one.
        """
        result: cython.int = 0
        if self._enter_open():
            if self.tx.size and pp_load32(self.tx.consumer) != self.tx.mine:
                with cython.nogil:
                    result = self._kick_tx()
            self._leave()
        return result

    def _kick_tx(self):
        before: uint32_t
        error: cython.int
        while True:
            before = pp_load32_acquire(self.tx.consumer)
            if before == self.tx.mine:
                return 0
            if self.need_wakeup and not pp_load32(self.tx.flags) & RING_NEED_WAKEUP:
                return 0
            pp_add64(cython.address(self.tx_kicks), 1)
            if sendto(self.fd, cython.NULL, 0, MSG_DONTWAIT, cython.NULL, 0) < 0:
                error = errno
                if error not in (EAGAIN, EBUSY, ENOBUFS, EINTR):
                    return error
            # Copy mode sends some 32 frames a call. EBUSY may mean one frame that was refused but completed.
            if pp_load32_acquire(self.tx.consumer) == before:
                return 0

    def reap(self) -> int:
        """Bring home what was sent; return how many pages. Context: any thread."""
        done: uint32_t = 0
        if self._enter_open():
            try:
                done = self._reap(False)
                if self.nr_strangers:
                    self._send_home()
            finally:
                self._leave()
        return done

    def _reap(self, direct):
        ids: uint32_t[BURST]
        there: uint32_t
        n: uint32_t
        k: uint32_t
        i: uint32_t
        id: uint32_t
        addr: uint64_t
        total: uint32_t = 0
        entries: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], self.completion.entries)
        if self.completion.size == 0:
            return 0
        while True:
            # The lock is not held over the pool: its slow path may want the GIL, and a holder of the GIL this
            # lock.
            pp_lock(cython.address(self.completion_lock))
            there = pp_load32_acquire(self.completion.producer) - self.completion.mine
            n = there if there < BURST else BURST
            k = 0
            for i in range(n):
                addr = entries[(self.completion.mine + i) & self.completion.mask]
                id = cython.cast(uint32_t, addr >> CHUNK_SHIFT)
                if addr >> CHUNK_SHIFT >= self.nr_pages or self.where[id] != AT_TX:
                    pp_add64(cython.address(self.bad_descriptors), 1)
                    continue
                if pg_slot(pp_load64(cython.address(self.pool.pages[id].word))) == self.pool.slot:
                    self.where[id] = AT_REST
                    ids[k] = id
                    k += 1
                elif self.nr_strangers < self.completion.size:
                    self.where[id] = AT_REST
                    self.strangers[self.nr_strangers] = id
                    self.nr_strangers += 1
                else:
                    n = i  # the rest after those are home
                    break
            if n:
                self.completion.mine += n
                pp_store32_release(self.completion.consumer, self.completion.mine)
                self.tx_completed += n
            pp_unlock(cython.address(self.completion_lock))
            if k:
                self.pool.put_ids(ids, k, -1, direct)
            total += n
            if n < BURST:
                return total

    def _send_home(self):
        # Pages that other queues redirected here go back to their own pools, a run of one pool's at a time: into the
        # cache where the caller is that pool's owner (one thread that polls several queues, or the one that has just
        # redirected them), else into the ring.
        ids: uint32_t[BURST]
        n: uint32_t
        id: uint32_t
        slot: uint32_t
        home: uint32_t
        direct: cython.bint
        pool: Tiers
        while True:
            n = 0
            home = 0
            pp_lock(cython.address(self.completion_lock))
            while self.nr_strangers and n < BURST:
                id = self.strangers[self.nr_strangers - 1]
                slot = pg_slot(pp_load64(cython.address(self.pool.pages[id].word)))
                if n and slot != home:
                    break
                home = slot
                ids[n] = id
                n += 1
                self.nr_strangers -= 1
            pp_unlock(cython.address(self.completion_lock))
            if n == 0:
                return 0
            pool = self.sources.get(home)
            if pool is None:
                pp_add64(cython.address(self.bad_descriptors), n)
                continue
            direct = pool.owner == pp_thread_id()
            if direct:
                try:
                    pool.enter_owner()
                except WrongThreadError:  # somebody has claimed it just now
                    direct = False
            pool.put_ids(ids, n, -1, direct)
            if direct:
                pool.leave_owner()

    # -- end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget the mappings; the caller unmaps them and closes the socket, then calls `take_back`."""
        deadline = time.monotonic() + 1.0
        pp_store32_total(cython.address(self.is_closed), 1)  # from here on nobody enters; see `_enter_open`
        while pp_load32_total(cython.address(self.inside)):
            if time.monotonic() > deadline:
                pp_store32_total(cython.address(self.is_closed), 0)
                raise PoolBusyError("another thread has been inside these rings for a second; stop it first")
            time.sleep(0.0005)
        memset(cython.address(self.rx), 0, cython.sizeof(xsk_ring_t))
        memset(cython.address(self.tx), 0, cython.sizeof(xsk_ring_t))
        memset(cython.address(self.fill), 0, cython.sizeof(xsk_ring_t))
        memset(cython.address(self.completion), 0, cython.sizeof(xsk_ring_t))

    def abandon(self) -> None:
        """`close` in a forked child, where the threads that were inside do not exist."""
        self.inside = 0
        self.close()

    def take_back(self) -> int:
        """Put every page that was in a ring, once the socket is closed and the kernel has let go of them.

        Returns
        -------
        int
            Pages that went home.
        """
        id: uint32_t
        slot: uint32_t
        done: uint32_t = 0
        pool: Tiers
        if not self.is_closed:
            raise RuntimeError("close the rings first: the kernel may still write to their pages")
        self._send_home()
        for id in range(self.nr_pages):
            if self.where[id] == AT_REST:
                continue
            self.where[id] = AT_REST
            slot = pg_slot(pp_load64(cython.address(self.pool.pages[id].word)))
            pool = self.pool if slot == self.pool.slot else self.sources.get(slot)
            if pool is not None:
                done += pool.put_ids(cython.address(id), 1, -1, False)
        self.sources.clear()
        return done

    def _enter(self):
        if not self._enter_open():
            raise ValueError("the queue is closed")
        return 0

    def _enter_open(self):
        # Counted before `is_closed` is read, and `close` reads the count after it wrote `is_closed`: one of them sees
        # the other. False, and nothing to leave, once closed.
        pp_add32_total(cython.address(self.inside), 1)
        if not pp_load32_total(cython.address(self.is_closed)):
            return True
        self._leave()
        return False

    def _leave(self):
        pp_add32(cython.address(self.inside), 0xFFFFFFFF)
        return 0

    # -- figures -----------------------------------------------------------------------------------------

    @property
    def nr_fill(self) -> int:
        """Pages in the fill ring that the kernel has not taken yet."""
        return self._count(cython.address(self.fill), True)

    @property
    def nr_rx(self) -> int:
        """Frames in the rx ring."""
        return self._count(cython.address(self.rx), False)

    @property
    def nr_tx_queued(self) -> int:
        """Frames in the tx ring that the kernel has not taken yet."""
        return self._count(cython.address(self.tx), True)

    def _count(self, ring, ours_is_producer):
        # Inside: without a GIL another thread may be closing, and the index is in memory that goes with the socket.
        count: uint32_t = 0
        if self._enter_open():
            if ring.size and ours_is_producer:
                count = ring.mine - pp_load32(ring.consumer)
            elif ring.size:
                count = pp_load32(ring.producer) - ring.mine
            self._leave()
        return count

    @property
    def nr_tx_outstanding(self) -> int:
        """Frames queued whose pages have not come home yet."""
        completed: uint64_t = pp_load64(cython.address(self.tx_completed))  # first: it never overtakes the other
        return pp_load64(cython.address(self.tx_frames)) - completed

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.is_closed != 0

    def __reduce__(self):
        raise TypeError("rings cannot be pickled")


@cython.cfunc
@cython.exceptval(-1, check=False)
def _join(ring: cython.pointer[xsk_ring_t], ring_map, ours_is_producer: cython.bint) -> cython.int:
    if ring_map is None:
        return 0
    ring.producer = cython.cast(cython.pointer[uint32_t], cython.cast(uintptr_t, ring_map.producer))
    ring.consumer = cython.cast(cython.pointer[uint32_t], cython.cast(uintptr_t, ring_map.consumer))
    ring.flags = cython.cast(cython.pointer[uint32_t], cython.cast(uintptr_t, ring_map.flags))
    ring.entries = cython.cast(cython.p_void, cython.cast(uintptr_t, ring_map.descriptors))
    ring.size = ring_map.nr_entries
    ring.mask = ring.size - 1
    ring.mine = pp_load32(ring.producer if ours_is_producer else ring.consumer)
    return 0

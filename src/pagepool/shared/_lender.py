# SPDX-License-Identifier: MIT
"""The lender's end: which page is with which borrower, and the rings that say so to the others.

The books (`shares`, `held`) are private memory and the only authority. The rings carry messages: what the other side
writes there is read once, checked against the books, and counted if it is not true. So a borrower can hurt nobody but
itself, and one that is killed at any instruction loses nothing: its pages are those the books say.

Not a pool and not a connection. Invariant (`Lender.check` proves it): a page with borrowers is lent by its pool and by
nobody else; ``shares[id]`` is the number of links that hold it; it goes home when the last of them gives it back or is
recalled, and then exactly once.
"""

import cython
from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memset
from cython.cimports.pagepool._core.arena import (
    PG_HANDLE,
    PG_LENT,
    PG_PFMEMALLOC,
    PG_REF_MAX,
    PG_REF_SHIFT,
    Arena,
    pg_slot,
    pg_state,
)
from cython.cimports.pagepool._core.atomic import (
    pp_cas64,
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
from cython.cimports.pagepool._core.page import KIND_HOLDER, Page
from cython.cimports.pagepool._core.tiers import Tiers
from cython.cimports.pagepool.shared._ring_layout import (
    AT_BORROWER_BELL,
    AT_GIVEN,
    AT_LENDER_BELL,
    AT_MAGIC,
    AT_REAPED,
    AT_SENT,
    AT_SLOTS,
    AT_STATE,
    AT_TAKEN,
    AT_VERSION,
    LINK_OPEN,
    MAX_SLOTS,
    MIN_SLOTS,
    RING_MAGIC,
    RING_VERSION,
    now_ns,
    ring_bell,
    ring_bytes,
    ring_place,
    ring_word,
    shared_desc_t,
    shared_frame_t,
)

from pagepool.errors import DeadPageError, ForeignPageError, PagePoolError, WrongThreadError

if not cython.compiled:
    raise ImportError("pagepool.shared._lender is compiled: run `make build`, or `pip install .`")

MOST_LINKS = MAX_LINKS
LEAST_SLOTS = MIN_SLOTS
MOST_SLOTS = MAX_SLOTS
VERSION = RING_VERSION


def size_of_rings(slots: int) -> int:
    """Bytes that the two rings of `slots` entries take, whole pages."""
    if not MIN_SLOTS <= slots <= MAX_SLOTS or slots & (slots - 1):
        raise ValueError(f"{slots} slots: a power of two from {MIN_SLOTS} to {MAX_SLOTS}")
    return ring_bytes(slots)


class Lender:
    """The books of one arena.

    Parameters
    ----------
    arena : Arena
        Whose pages are lent.

    Notes
    -----
    Context: any thread; one lock for a few dozen instructions a page, never held over Python.
    """

    def __cinit__(self, arena: Arena):
        if arena is None:
            raise TypeError("a Lender needs an Arena")
        self.arena = arena
        self.pages = arena.pages
        self.nr_pages = arena.nr_pages
        self.sources = {}
        self.links = []
        self.shares = cython.cast(cython.pointer[uint16_t], calloc(self.nr_pages, 2))
        if self.shares == cython.NULL:
            raise MemoryError("no memory for the books of what is lent")

    def __dealloc__(self):
        free(self.shares)

    def abandon(self) -> None:
        """In a forked child: the rings and the pages are the parent's, nothing is lent or brought home here."""
        one: Link
        self.lock = 0  # a thread of the parent may have held it
        for one in self.links:
            one.open = False
            one.dead = True
            one.bell_fd = -1

    def add_source(self, pool: Tiers) -> None:
        """Make a pool known, so that pages of it can be lent by their ids alone."""
        if pool is None or pool.arena is not self.arena:
            raise ForeignPageError(f"{pool!r} is not over the arena that is lent")
        self.sources[pool.slot] = pool

    def lend(self, links: tuple, pool: Tiers | None, ids, lengths, offsets, queue: uint32_t, stamps):
        """Lend pages, each to every link that has room.

        Parameters
        ----------
        links : tuple of Link
        pool : PagePool or None
            Whose pages they are, of this arena; None for that of the first page.
        ids, lengths : buffers of uint32, (n,)
            Page, and bytes of its frame.
        offsets : int or buffer of uint32, (n,)
            Bytes from the page's first byte to the frame's.
        queue : int
            Written beside each.
        stamps : buffer of uint64, (n,), or None
            Nanoseconds of ``CLOCK_MONOTONIC``; now, by default.

        Returns
        -------
        int
            How many of the first at least one link took; those are the books' until every borrower has given them
            back. The rest is still the caller's. It ends where no link has room, and at a page that is not a whole page
            lent by `pool`, is with a borrower already, or whose frame does not lie in it (counted in `rejected`).

        Notes
        -----
        What a link that is short of room has given back is brought home first. The arrays are read once: another thread
        that writes to them meanwhile can have other pages lent, but none that is not the pool's.
        """
        views: Py_buffer[4]
        targets: cython.p_void[MAX_LINKS]
        opened: cython.int = 0
        n: uint32_t
        done: uint32_t = 0
        i: cython.int
        offset: uint32_t = 0
        first: uint32_t
        if pool is not None and pool.arena is not self.arena:
            raise ForeignPageError(f"{pool!r} is not over the arena that is lent")
        if isinstance(offsets, int):
            if not 0 <= offsets <= 0xFFFFFFFF:
                raise ValueError(f"offset {offsets}")
            offset = offsets
            offsets = None
        try:
            _get(ids, cython.address(views[0]), 4)
            opened = 1
            n = cython.cast(uint32_t, views[0].len // 4)
            _get(lengths, cython.address(views[1]), 4)
            opened = 2
            if offsets is not None:
                _get(offsets, cython.address(views[2]), 4)
            else:
                memset(cython.address(views[2]), 0, cython.sizeof(Py_buffer))
            opened = 3
            if stamps is not None:
                _get(stamps, cython.address(views[3]), 8)
            else:
                memset(cython.address(views[3]), 0, cython.sizeof(Py_buffer))
            opened = 4
            if (
                views[1].len != views[0].len
                or (offsets is not None and views[2].len != views[0].len)
                or (stamps is not None and views[3].len != 2 * views[0].len)
            ):
                raise ValueError("ids, lengths, offsets and stamps must be of one length")
            at: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], views[0].buf)
            if pool is None:
                if n == 0:
                    return 0
                first = pp_load32(at)
                if first < self.nr_pages:
                    pool = self.sources.get(pg_slot(pp_load64(cython.address(self.pages[first].word))))
                if pool is None:
                    pp_lock(cython.address(self.lock))
                    self.rejected += 1
                    pp_unlock(cython.address(self.lock))
                    return 0
            self.sources[pool.slot] = pool
            nr: cython.int = self._targets(links, targets, n)
            long: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], views[1].buf)
            into: cython.pointer[uint32_t] = cython.cast(cython.pointer[uint32_t], views[2].buf)
            when: cython.pointer[uint64_t] = cython.cast(cython.pointer[uint64_t], views[3].buf)
            if n >= NOGIL_FRAMES:
                with cython.nogil:
                    done = self._lend(targets, nr, pool, at, long, into, n, offset, queue, when)
            else:
                done = self._lend(targets, nr, pool, at, long, into, n, offset, queue, when)
        finally:
            for i in range(opened):
                PyBuffer_Release(cython.address(views[i]))
        return done

    def lend_page(self, links: tuple, page: Page, length: uint32_t, queue: uint32_t):
        """Lend the page of a handle; the handle is dead if it returns true, and untouched if there was no room.

        Raises
        ------
        DeadPageError, ForeignPageError
            The handle is dead, a fragment, or of another arena.
        PagePoolError
            Views of it are alive: they could still write what the borrower reads.
        """
        targets: cython.p_void[MAX_LINKS]
        if page is None:
            raise TypeError("a Page, not None")
        page._must_live()
        pool: Tiers = page.pool
        if pool.arena is not self.arena or page.kind != KIND_HOLDER:
            raise ForeignPageError(f"{page!r} is no whole page of the arena that is lent")
        if length > page.length:
            raise ValueError(f"{length} bytes of a page of {page.length}")
        nr: cython.int = self._targets(links, targets, 1)
        id: uint32_t = page.id
        offset: uint32_t = page.offset
        word: uint64_t
        special: uint64_t = PG_PFMEMALLOC | (cython.cast(uint64_t, PG_REF_MAX) << PG_REF_SHIFT)
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        if page.exports:
            raise PagePoolError(f"page {id} has views; let go of them before it is lent")
        if not pp_swap32_gil(cython.address(page.live), 0):
            raise DeadPageError(f"page {id} was put")
        word = pp_load64(at)
        if (word & ~cython.cast(uint64_t, PG_PFMEMALLOC)) != pool.word_lent_handle or not pp_cas64(
            at, word, word & ~cython.cast(uint64_t, PG_HANDLE)
        ):
            page.live = 1
            raise PagePoolError(f"page {id} has views or fragments; let go of them before it is lent")
        self.sources[pool.slot] = pool
        # Before it is lent: it may be home, and somebody else's, as soon as the other side has seen it.
        self.pages[id].generation += 1  # nobody reaches it through this handle or a copy of its words
        if self._lend(
            targets, nr, pool, cython.address(id), cython.address(length), cython.NULL, 1, offset, queue, cython.NULL
        ):
            return True
        # The handle's again, unless somebody has put the bare id meanwhile. By exchange: another thread that is just
        # finding out that the handle was dead has a reference for a moment.
        while True:
            word = pp_load64(at)
            if (word & ~special) != (pool.word_lent & ~special):
                return False
            if pp_cas64(at, word, word | PG_HANDLE):
                break
        page.generation = self.pages[id].generation
        page.live = 1
        return False

    def _targets(self, links, targets, n):
        # The links as the loops take them. One that is short of room gets some first, if it has given pages back.
        one: Link
        i: cython.int
        nr: cython.int = cython.cast(cython.int, len(links))
        if nr > MAX_LINKS or len(set(links)) != nr:
            raise ValueError(f"{nr} links: at most {MAX_LINKS}, and none twice")
        for i in range(nr):
            one = links[i]
            if one is None or one.lender is not self:
                raise ForeignPageError("a link of another lender")
            targets[i] = cython.cast(cython.p_void, one)
            if one._room() < n:
                one.reap()
        return nr

    def _lend(self, links, nr_links, pool, ids, lengths, offsets, n, offset, queue, stamps):
        # A burst at a time, so that nobody waits for the lock long, through a copy: between the look at an id and its
        # use, the caller's array may be written to by another thread.
        frames: shared_frame_t[BURST]
        room: uint32_t[MAX_LINKS]
        done: uint32_t = 0
        some: uint32_t
        most: uint32_t
        good: uint32_t
        k: uint32_t
        i: cython.int
        at: uint32_t
        now: uint64_t = now_ns()
        while done < n:
            some = n - done if n - done < BURST else BURST
            most = 0
            pp_lock(cython.address(self.lock))
            for i in range(nr_links):
                room[i] = cython.cast(Link, links[i])._room()
                if room[i] > most:
                    most = room[i]
            good = self._mark(
                pool,
                ids + done,
                lengths + done,
                offsets if offsets == cython.NULL else offsets + done,
                some if some < most else most,
                offset,
                frames,
            )
            if good < some:
                some = n - done  # it ends here, and what has no room is counted
            for i in range(nr_links):
                k = good if good < room[i] else room[i]
                cython.cast(Link, links[i])._put(
                    frames, k, queue, stamps if stamps == cython.NULL else stamps + done, now
                )
                if k == room[i]:
                    cython.cast(Link, links[i])._refuse(some - k)
            for at in range(good):  # the mark itself goes
                self.shares[frames[at].id] -= 1
            for i in range(nr_links):
                cython.cast(Link, links[i])._publish()
            pp_unlock(cython.address(self.lock))
            done += good
            if good < some:
                break
        return done

    def _mark(self, pool, ids, lengths, offsets, n, offset, frames):
        # How many of the first are the caller's to lend; each gets a share, so that one that comes twice is seen.
        i: uint32_t
        id: uint32_t
        length: uint32_t
        at: uint32_t = offset
        size: uint32_t = pool.object_bytes
        # Tensors and Arrow may look too, by references of their own; PG_SPENT says whether the holder's is there.
        special: uint64_t = PG_PFMEMALLOC | (cython.cast(uint64_t, PG_REF_MAX) << PG_REF_SHIFT)
        lent: uint64_t = pool.word_lent & ~special
        for i in range(n):
            id = pp_load32(ids + i)  # each once
            length = pp_load32(lengths + i)
            if offsets != cython.NULL:
                at = pp_load32(offsets + i)
            if (
                pp_unlikely(id >= self.nr_pages)
                or (pp_load64(cython.address(self.pages[id].word)) & ~special) != lent
                or self.shares[id]
                or length > size
                or at > size - length
            ):
                self.rejected += 1
                return i
            self.shares[id] = 1
            frames[i].id = id
            frames[i].length = length
            frames[i].offset = at
        return n

    def _go_home(self, ids, n):
        # To the pools they came from, in runs of one pool. Whatever a device raises, the rest goes home too.
        first: uint32_t = 0
        last: uint32_t
        slot: uint32_t
        pool: Tiers
        direct: cython.bint
        failed: object = None
        while first < n:
            slot = pg_slot(pp_load64(cython.address(self.pages[ids[first]].word)))
            last = first + 1
            while last < n and pg_slot(pp_load64(cython.address(self.pages[ids[last]].word))) == slot:
                last += 1
            pool = self.sources.get(slot)
            if pool is not None:
                direct = pool.auto_direct and pool.owner == pp_thread_id()
                try:
                    if direct:
                        try:
                            pool.enter_owner()
                        except WrongThreadError:
                            direct = False  # another thread has claimed it since
                    pool.put_ids(ids + first, last - first, -1, direct)
                    if direct:
                        pool.leave_owner()
                    elif pool.pending is not None:
                        pool.raise_pending()
                except BaseException as error:
                    failed = failed or error
            first = last
        if failed is not None:
            raise failed
        return 0

    @property
    def nr_links(self) -> int:
        """Borrowers whose books are not closed."""
        return len(self.links)

    @property
    def nr_shared(self) -> int:
        """Pages that are with a borrower."""
        id: uint32_t
        count: uint32_t = 0
        for id in range(self.nr_pages):
            if self.shares[id]:
                count += 1
        return count

    def check(self) -> None:
        """Prove the books: every share has its holder, and every shared page is lent by a pool that is known.

        Raises
        ------
        PagePoolError
            Naming the page.
        """
        known: tuple
        held: cython.p_void[MAX_LINKS]
        totals: uint32_t[MAX_LINKS]
        nr: cython.int
        changes: uint32_t
        i: cython.int
        id: uint32_t
        total: uint32_t
        word: uint64_t
        odd: uint32_t = self.nr_pages  # no Python under the lock: what is wrong is said afterwards
        astray: uint32_t = self.nr_pages
        while True:
            changes = self.changes
            known = tuple(self.links)
            nr = cython.cast(cython.int, min(len(known), MAX_LINKS))
            for i in range(nr):
                held[i] = cython.cast(cython.p_void, cython.cast(Link, known[i]).held)
                totals[i] = 0
            pp_lock(cython.address(self.lock))
            if changes == self.changes:
                break
            pp_unlock(cython.address(self.lock))  # somebody has come or gone since
        for id in range(self.nr_pages):
            total = 0
            for i in range(nr):
                if cython.cast(cython.pointer[uint8_t], held[i])[id]:
                    total += 1
                    totals[i] += 1
            word = pp_load64(cython.address(self.pages[id].word))
            if total != self.shares[id]:
                odd = id
            if self.shares[id] and pg_state(word) != PG_LENT:
                astray = id
        for i in range(nr):
            totals[i] -= cython.cast(Link, known[i]).outstanding
        pp_unlock(cython.address(self.lock))
        if odd != self.nr_pages:
            raise PagePoolError(f"page {odd} has {self.shares[odd]} shares, which are not what its borrowers hold")
        if astray != self.nr_pages:
            raise PagePoolError(f"page {astray} is with a borrower, but its pool has not lent it")
        for i in range(nr):
            if totals[i]:
                raise PagePoolError(f"{known[i]!r}: {known[i].outstanding} pages outstanding are not what it holds")


class Link:
    """The lender's end of one borrower's rings.

    Parameters
    ----------
    lender : Lender
    vaddr : int
        Of the rings, `size_of_rings` bytes, a multiple of 4096; written anew.
    slots : int
        Entries of each ring, a power of two; also the most pages that this borrower can have at once, so that neither
        ring can ever be too small for an honest one.
    bell_fd : int
        A socket to wake the borrower by, -1 for one that polls. Not owned.
    keep_alive : object
        The mapping.
    """

    def __cinit__(self, lender: Lender, vaddr: uintptr_t, slots: uint32_t, bell_fd: int = -1, keep_alive=None):
        if lender is None:
            raise TypeError("a Link needs a Lender")
        size_of_rings(slots)
        if vaddr == 0 or vaddr & 4095:
            raise ValueError(f"rings at vaddr {vaddr:#x}: a multiple of 4096")
        if len(lender.links) >= MAX_LINKS:
            raise ValueError(f"{MAX_LINKS} borrowers are served already")
        self.lender = lender
        self.keep_alive = keep_alive
        self.bell_fd = bell_fd
        self.start_ns = now_ns()
        self.held = cython.cast(cython.pointer[uint8_t], calloc(lender.nr_pages, 1))
        self.since_ms = cython.cast(cython.pointer[uint32_t], calloc(lender.nr_pages, 4))
        if self.held == cython.NULL or self.since_ms == cython.NULL:
            raise MemoryError("no memory for the books of a borrower")
        memset(cython.cast(cython.p_void, vaddr), 0, ring_bytes(slots))
        ring_place(cython.address(self.ring), vaddr, slots)
        pp_store32(ring_word(cython.address(self.ring), AT_VERSION), RING_VERSION)
        pp_store32(ring_word(cython.address(self.ring), AT_SLOTS), slots)
        pp_store32(ring_word(cython.address(self.ring), AT_STATE), LINK_OPEN)
        pp_store32(ring_word(cython.address(self.ring), AT_LENDER_BELL), 1)
        # Last: whoever polls this memory for a lender finds the rest written. Pairs with the acquire in Borrower.
        pp_store32_release(ring_word(cython.address(self.ring), AT_MAGIC), RING_MAGIC)
        lender.links.append(self)
        pp_lock(cython.address(lender.lock))
        lender.changes += 1
        self.open = True
        pp_unlock(cython.address(lender.lock))

    def __dealloc__(self):
        free(self.held)
        free(self.since_ms)

    # -- lending, under the lender's lock ------------------------------------------------------------------------

    def _room(self):
        return self.ring.size - self.outstanding if self.open else 0

    def _put(self, frames, n, queue, stamps, now):
        # Room was asked for: an entry that is written over was consumed, or its page could not have come back.
        i: uint32_t
        id: uint32_t
        entry: cython.pointer[shared_desc_t]
        since: uint32_t = cython.cast(uint32_t, (now - self.start_ns) // 1000000)
        shares: cython.pointer[uint16_t] = self.lender.shares
        for i in range(n):
            id = frames[i].id
            entry = self.ring.sent + ((self.sent_mine + i) & self.ring.mask)
            entry.id = id
            entry.offset = frames[i].offset
            entry.length = frames[i].length
            entry.queue = queue
            entry.timestamp_ns = now if stamps == cython.NULL else stamps[i]
            shares[id] += 1
            self.held[id] = 1
            self.since_ms[id] = since
        self.sent_mine += n
        self.outstanding += n
        self.sent += n

    def _refuse(self, n):
        if self.open:
            self.backpressure += n

    def _publish(self):
        if not self.open:
            return
        # Release pairs with the acquire in Borrower._take: the descriptors are whole.
        pp_store32_release(ring_word(cython.address(self.ring), AT_SENT), self.sent_mine)
        pp_fence()  # pairs with the one in Borrower.arm: either it sees the new index, or this sees its bell
        if pp_unlikely(pp_load32(ring_word(cython.address(self.ring), AT_BORROWER_BELL)) == 1):
            pp_store32(ring_word(cython.address(self.ring), AT_BORROWER_BELL), 0)
            ring_bell(self.bell_fd)
            self.bells += 1

    # -- coming home ---------------------------------------------------------------------------------------------

    def reap(self) -> int:
        """Bring home what the borrower gave back; return how many pages went to their pools.

        Notes
        -----
        Context: any thread. At most one ring full, however fast the other side writes.
        """
        home: uint32_t[BURST]
        looked: uint32_t = 0
        total: uint32_t = 0
        seen: uint32_t = 0
        k: uint32_t
        failed: object = None
        while seen < self.ring.size:
            k = self._reap(home, cython.address(looked))
            if k:
                try:
                    self.lender._go_home(home, k)
                except BaseException as error:
                    failed = failed or error
                total += k
            seen += looked
            if looked < BURST:
                break
        if failed is not None:
            raise failed
        return total

    def _reap(self, home, looked):
        # One burst of returns against the books. Acquire pairs with the release in Borrower._give.
        n: uint32_t
        i: uint32_t
        id: uint32_t
        k: uint32_t = 0
        shares: cython.pointer[uint16_t] = self.lender.shares
        pp_lock(cython.address(self.lender.lock))
        n = pp_load32_acquire(ring_word(cython.address(self.ring), AT_GIVEN)) - self.reaped_mine
        if pp_unlikely(n > self.ring.size):
            self.bad_indexes += 1
            n = 0
        if self.dead:
            n = 0
        if n > BURST:
            n = BURST
        for i in range(n):
            id = pp_load32(self.ring.given + ((self.reaped_mine + i) & self.ring.mask))  # once: it may change
            if pp_unlikely(id >= self.lender.nr_pages):
                self.bad_ids += 1
                continue
            if pp_unlikely(not self.held[id]):
                self.bad_returns += 1
                continue
            self.held[id] = 0
            self.outstanding -= 1
            self.returned += 1
            shares[id] -= 1
            if shares[id] == 0:
                home[k] = id
                k += 1
        if n:
            self.reaped_mine += n
            pp_store32_release(ring_word(cython.address(self.ring), AT_REAPED), self.reaped_mine)
        pp_unlock(cython.address(self.lender.lock))
        looked[0] = n
        return k

    def stop(self, state: uint32_t) -> None:
        """Lend nothing more and say so in the ring; what the borrower has it can still give back.

        Idempotent, and never less than what was said before: a link that was revoked stays revoked.
        """
        pp_lock(cython.address(self.lender.lock))
        self.open = False
        self.bell_fd = -1  # whoever owns the socket closes it after this
        if state > self.state:
            self.state = state
        pp_store32_release(ring_word(cython.address(self.ring), AT_STATE), self.state)
        pp_unlock(cython.address(self.lender.lock))

    def recall(self) -> int:
        """Take back everything this borrower has, whatever it does or writes from now on; idempotent.

        Returns
        -------
        int
            How many pages it had.
        """
        home: uint32_t[BURST]
        at: uint32_t = 0
        before: uint32_t
        k: uint32_t
        pp_lock(cython.address(self.lender.lock))
        self.open = False
        self.dead = True
        self.bell_fd = -1
        before = self.outstanding
        pp_unlock(cython.address(self.lender.lock))
        failed: object = None
        while at < self.lender.nr_pages:
            k = self._recall(cython.address(at), home)
            try:
                if k:
                    self.lender._go_home(home, k)
            except BaseException as error:
                failed = failed or error
        try:
            self.lender.links.remove(self)
        except ValueError:
            pass  # another thread recalls it too
        else:
            pp_lock(cython.address(self.lender.lock))
            self.lender.changes += 1
            pp_unlock(cython.address(self.lender.lock))
        if failed is not None:
            raise failed
        return before

    def _recall(self, at, home):
        # The next stretch of the books, until a burst is full.
        k: uint32_t = 0
        id: uint32_t = at[0]
        last: uint32_t = id + RECALL_PAGES
        shares: cython.pointer[uint16_t] = self.lender.shares
        if last > self.lender.nr_pages:
            last = self.lender.nr_pages
        pp_lock(cython.address(self.lender.lock))
        while id < last and k < BURST:
            if self.held[id]:
                self.held[id] = 0
                self.outstanding -= 1
                self.recalled += 1
                shares[id] -= 1
                if shares[id] == 0:
                    home[k] = id
                    k += 1
            id += 1
        pp_unlock(cython.address(self.lender.lock))
        at[0] = id
        return k

    def arm(self) -> bool:
        """Ask to be woken by the next return; false if there is one already."""
        pp_store32(ring_word(cython.address(self.ring), AT_LENDER_BELL), 1)
        pp_fence()  # pairs with the one in Borrower._give
        return pp_load32(ring_word(cython.address(self.ring), AT_GIVEN)) == self.reaped_mine

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """The most pages it can have at once."""
        return self.ring.size

    @property
    def returned_index(self) -> int:
        """Returns that were looked at, free-running modulo 2**32."""
        return self.reaped_mine

    @property
    def backlog(self) -> int:
        """Descriptors it has not taken yet, as far as it says; 0 to `outstanding`."""
        said: uint32_t = self.sent_mine - pp_load32(ring_word(cython.address(self.ring), AT_TAKEN))
        return said if said <= self.outstanding else self.outstanding

    def held_ids(self) -> list:
        """Pages that this borrower has."""
        return [id for id in range(self.lender.nr_pages) if self.held[id]]

    def oldest_s(self) -> float:
        """Seconds since it got the page that it has had for longest; 0.0 if it has none."""
        id: uint32_t
        age: uint32_t
        oldest: uint32_t = 0
        # Modulo 2**32 ms: right for what was lent in the last seven weeks, however old the link is.
        now: uint32_t = cython.cast(uint32_t, (now_ns() - self.start_ns) // 1000000)
        for id in range(self.lender.nr_pages):
            age = now - self.since_ms[id]
            if self.held[id] and age > oldest and age < 0xFFFF0000:  # lent this very moment: younger than `now`
                oldest = age
        return oldest / 1e3


def _get(values, view, item_bytes):
    PyObject_GetBuffer(values, view, PyBUF_SIMPLE)
    if view.itemsize != item_bytes and view.len:
        size = view.itemsize
        PyBuffer_Release(view)
        raise TypeError(f"a contiguous buffer of {item_bytes}-byte items, not of {size}-byte items")
    return 0

# SPDX-License-Identifier: MIT
"""The page allocator: the "regular" allocator that pools fall back on and release to, over one reservation.

It joins a `Reservation` (address space), a `SlabSource` (memory) and an `Arena` (which pages are free), and
decides when a slab is committed and when it is given back. It does not know pools or devices; any number of
pools share it, one per hardware queue as a rule. Invariant: a slab that the arena has is mapped, and stays
mapped until the arena gives it up.
"""

from __future__ import annotations

import fcntl
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from pagepool._core.arena import Arena
from pagepool._core.params import NUMA_NO_NODE, PAGE_SIZE, SLAB_SIZE
from pagepool.memory import fork, huge_pages, numa
from pagepool.memory.allocator_stats import AllocatorStats, describe_kinds, describe_nodes
from pagepool.memory.kinds import MemoryKind
from pagepool.memory.reservation import Reservation
from pagepool.memory.slab_table import SlabTable
from pagepool.memory.slabs import SlabSource
from pagepool.memory.windows import Windows

DEFAULT_SIZE_BYTES = 64 << 30
_LEAST_SIZE_BYTES = 64 << 20
MAX_SIZE_BYTES = 8 << 40  # ids are 32 bits, the highest means "no page"


class PageAllocator:
    """Make a page allocator.

    Parameters
    ----------
    size_bytes : int, optional
        Address space to reserve, up to 8 TiB: the most that can ever be committed. It costs no memory. By
        default 64 GiB, or as much of it as a limited address space (``ulimit -v``) leaves.
    kind : MemoryKind or str
        What slabs are made of.
    nid : int
        NUMA node of all memory; ``NUMA_NO_NODE`` leaves each slab to the pool that wants it, or else to the
        thread.
    prefault : bool
        Populate a slab when it is committed, so that no page fault comes on the fast path.
    commit : bool
        Commit everything now, for a device that registers the arena once (an AF_XDP UMEM). Such an allocator
        neither grows nor shrinks; `size_bytes` must be given.
    fallback : bool
        Whether another kind or another node will do; `got`, `nids` and `describe` say what it is.
    limit_bytes : int, optional
        The most memory to commit, in whole slabs; by default all of `size_bytes`.
    reserve_pages : int
        The last so many free pages of 4 KiB are for emergencies: pages out of them are flagged ``pfmemalloc``
        and never recycled.

    Raises
    ------
    ValueError
        A size or limit out of range, or no such NUMA node (the text names those there are).
    MemoryKindError
        The first slab could not be had; the text names the knob to turn.

    Notes
    -----
    The first slab is committed at once, so that what can be had is known from the start. Fresh memory is all
    zeros, also after `shrink`; pages that come back from a pool are not cleared (``PagePool(zero=True)`` does
    it).

    Memory outlives this object as long as a page, a view or a pool's arena refers to it.

    Fork: in the child, private kinds are a copy made page by page on the first write of either side; parent
    and child each have an allocator of their own from then on, and what a device has pinned stays the
    parent's. Shared kinds are the same pages in both: the child must leave allocation to the parent, and
    neither grows nor shrinks.

    Context: any thread; one lock around growing and shrinking, never held while pages are handed out. The GIL
    is released while the kernel populates.
    """

    def __init__(
        self,
        size_bytes: int | None = None,
        kind: MemoryKind | str = MemoryKind.ANONYMOUS,
        nid: int = NUMA_NO_NODE,
        *,
        prefault: bool = True,
        commit: bool = False,
        fallback: bool = True,
        limit_bytes: int | None = None,
        reserve_pages: int = 0,
    ) -> None:
        if commit and size_bytes is None:
            raise ValueError("commit=True needs size_bytes: everything is committed at once")
        if size_bytes is not None and not 0 < size_bytes <= MAX_SIZE_BYTES:
            raise ValueError(f"size_bytes {size_bytes} is out of range: 1 to {MAX_SIZE_BYTES} (8 TiB)")
        if limit_bytes is not None and limit_bytes < SLAB_SIZE:
            raise ValueError(f"limit_bytes {limit_bytes} is less than one slab of {SLAB_SIZE}")
        if reserve_pages < 0:
            raise ValueError(f"reserve_pages {reserve_pages} is negative")
        self.kind = MemoryKind(kind)
        self.nid = numa.check_node(nid)
        self._reservation, self.arena = _reserve(size_bytes)
        source = SlabSource(self._reservation, self.kind, fallback=fallback, prefault=prefault, whole=commit)
        self._slabs = SlabTable(source)
        self._fixed = commit
        self._inherited = False  # shared memory in a forked child: it is the parent's to grow and to punch
        self._limit_slabs = self._reservation.nr_slabs
        if limit_bytes is not None:
            self._limit_slabs = min(self._limit_slabs, limit_bytes // SLAB_SIZE)
        if commit and self._limit_slabs < self._reservation.nr_slabs:
            raise ValueError(f"limit_bytes {limit_bytes} is less than the {self.size_bytes} bytes to commit")
        self._windows = Windows(self._reservation)
        self._grown = self._given_back = self._grow_failures = 0
        self.last_error: OSError | None = None
        self.closed = False
        # Reentrant: a device's unmap, or a finalizer, may allocate while this thread shrinks.
        self._lock = threading.RLock()
        fork.watch(self)

        self.arena.keep_alive = self._reservation
        self.arena.reserve_pages = reserve_pages
        # Memory that may be anywhere is looked for where the pool runs, and pages from elsewhere are let go.
        self.arena.follow_cpu = not commit and self.nid == NUMA_NO_NODE and len(numa.nodes()) > 1
        try:
            for _ in range(self._reservation.nr_slabs if commit else 1):
                self._commit_next(self.nid)
        except BaseException:
            self.close()  # the memory and the descriptor now, not when the traceback lets go of us
            raise
        self.arena.grow = None if commit else _weakly(self)

    # -- growing and shrinking -------------------------------------------------------------------------------

    def grow(self, order: int = 0, nid: int = NUMA_NO_NODE) -> bool:
        """Commit one more slab; the arena calls this when it has no free block.

        Parameters
        ----------
        order : int
            log2 of the pages wanted; a slab holds every order.
        nid : int
            Where the caller would like them; the allocator's own `nid` has precedence.

        Returns
        -------
        bool
            Whether trying again makes sense: ``False`` at the limit, after `close`, or when the system has no
            memory (`last_error` says why).
        """
        seen = self._grown
        with self._lock:
            if self._grown != seen:
                return True  # another thread was here while we waited for the lock
            if self.closed or self._fixed or self._inherited:
                return False
            if len(self._slabs) >= self._limit_slabs:
                self._grow_failures += 1
                return False
            try:
                self._commit_next(self.nid if self.nid != NUMA_NO_NODE or nid not in numa.nodes() else nid)
            except OSError as error:
                self._grow_failures += 1
                self.last_error = error
                return False
            return True

    def _commit_next(self, nid: int) -> None:
        index, slab = self._slabs.commit(nid)
        self._grown += 1
        self.arena.add_slab(index, slab.nid)

    def shrink(self, keep_bytes: int = 0) -> int:
        """Give wholly free slabs back to the system; their address space stays reserved.

        Parameters
        ----------
        keep_bytes : int
            How much free memory to keep for the next rush.

        Returns
        -------
        int
            Bytes given back. Slabs that a device would not unmap, or under a live `view`, stay.
        """
        given_back = 0
        with self._lock:
            if self._inherited or (self._fixed and not self.closed):
                return 0
            first_movable = self._windows.covered_bytes // SLAB_SIZE
            for index in reversed(self.arena.free_slabs()):
                spare_bytes = self.arena.nr_free_pages * PAGE_SIZE - SLAB_SIZE
                if index < first_movable or spare_bytes < keep_bytes:
                    break
                given_back += self._give_back(index)
        return given_back

    def _give_back(self, index: int) -> int:
        try:
            if not self.arena.remove_slab(index):
                return 0
        except OSError as error:  # the device would not unmap it: the arena has kept it
            self.last_error = error
            return 0
        nid = self._slabs[index].nid
        try:
            self._slabs.decommit(index)
        except OSError as error:
            self.last_error = error
            self.arena.add_slab(index, nid)
            return 0
        self._given_back += 1
        return SLAB_SIZE

    def close(self) -> bool:
        """Stop growing and give back what is free. Idempotent.

        Pages, views and arenas that are still out stay valid: the memory under them goes when the last of
        them goes.

        Returns
        -------
        bool
            Whether all memory went back; ``False`` says that something is still out, and a later `shrink` or
            `close` will give back what has come home since.
        """
        with self._lock:
            self.closed = True  # the arena may go on calling `grow`: it says no from now on
            self.shrink()
            if self._slabs.source.file is not None:
                self._slabs.source.file.close()
            return not self._slabs

    def __enter__(self) -> PageAllocator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Take a new lock; over shared memory, stop growing and shrinking."""
        # The lock may have been held by a thread that the child does not have.
        self._lock = threading.RLock()
        self._inherited = self.kind.is_shared

    # -- the memory ------------------------------------------------------------------------------------------

    @property
    def base_vaddr(self) -> int:
        """vaddr of page 0."""
        return self._reservation.base_vaddr

    @property
    def size_bytes(self) -> int:
        """Address space reserved, in bytes."""
        return self._reservation.size_bytes

    @property
    def committed_bytes(self) -> int:
        """Memory committed, in bytes."""
        return len(self._slabs) * SLAB_SIZE

    @property
    def fd(self) -> int | None:
        """File descriptor of the memory file; ``None`` for private kinds and after `close`.

        For other processes: byte ``id << 12`` of the file is page `id`. The allocator owns the descriptor:
        duplicate it to keep it.
        """
        file = self._slabs.source.file
        return None if file is None or file.closed else file.fd

    def freeze(self, *, writers: bool) -> None:
        """Make the memory file ready for other processes: committed whole, it never changes its size again.

        Parameters
        ----------
        writers : bool
            Whether others may write to it. If not, the kernel refuses everybody else a writable mapping for good.

        Raises
        ------
        ValueError
            The memory is private, or it grows as it goes (`commit` was not given).
        OSError
            The kernel does not know the seals (before Linux 5.1), or it was frozen the other way.
        """
        with self._lock:
            file = self._slabs.source.file
            if file is None or file.closed:
                raise ValueError(f"{self!r} is no memory file: make it with kind='memfd'")
            if not self._fixed:
                raise ValueError(f"{self!r} grows as it goes; what others map needs commit=True")
            file.freeze(writers=writers)

    def dup_fd(self, *, writable: bool) -> int:
        """Return a new descriptor of the memory file, for another process; the caller closes it."""
        file = self._slabs.source.file
        if file is None or file.closed:
            raise ValueError(f"{self!r} has no open memory file")
        return fcntl.fcntl(file.fd, fcntl.F_DUPFD_CLOEXEC, 0) if writable else file.open_read_only()

    def view(self) -> memoryview:
        """Return the arena as one writable memoryview of bytes, from page 0 to the first hole.

        While it is alive, the slabs under it stay. It sees every page, lent or not: for registering with a
        device and for looking, not for writing to pages that others hold.
        """
        with self._lock:
            return self._windows.open(self._slabs.first_hole * SLAB_SIZE)

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def got(self) -> Counter[MemoryKind]:
        """What the slabs really are: kind -> slabs of 2 MiB.

        Transparent huge pages are counted as the kernel has them at this moment, whatever was asked for: it
        may give, split and join them at any time.

        Notes
        -----
        Reads /proc/self/smaps if there are private slabs: milliseconds.
        """
        with self._lock:
            kinds = self._slabs.kinds()
        ordinary = kinds.pop(MemoryKind.ANONYMOUS, 0) + kinds.pop(MemoryKind.THP, 0)
        if ordinary:
            thp_bytes = huge_pages.thp_bytes(self.base_vaddr, self.base_vaddr + self.size_bytes)
            huge = min(ordinary, thp_bytes // SLAB_SIZE)
            kinds += Counter({MemoryKind.THP: huge, MemoryKind.ANONYMOUS: ordinary - huge})
        return kinds

    @property
    def nids(self) -> Counter[int]:
        """Where the slabs really are: NUMA node -> slabs of 2 MiB."""
        with self._lock:
            return self._slabs.nids()

    def describe(self) -> str:
        """Say in one line what the memory is: ``2 MiB huge pages (3 of 4 slabs), rest 4 KiB pages``."""
        text = describe_kinds(self.kind, self.got)
        nids = self.nids
        if len(nids) > 1 or (self.nid != NUMA_NO_NODE and self.nid not in nids):
            text += f"; {describe_nodes(nids)}"
        return text

    def stats(self) -> AllocatorStats:
        """Return the figures of this moment."""
        with self._lock:
            arena = self.arena
            free_bytes = arena.nr_free_pages * PAGE_SIZE
            return AllocatorStats(
                reserved_bytes=self.size_bytes,
                committed_bytes=self.committed_bytes,
                free_bytes=free_bytes,
                used_bytes=arena.nr_added_pages * PAGE_SIZE - free_bytes,
                limit_bytes=self._limit_slabs * SLAB_SIZE,
                slabs=len(self._slabs),
                slabs_grown=self._grown,
                slabs_given_back=self._given_back,
                grow_failures=self._grow_failures,
                alloc_calls=arena.alloc_calls,
                free_calls=arena.free_calls,
                pages_allocated=arena.pages_allocated,
                pages_freed=arena.pages_freed,
            )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.committed_bytes >> 20} of {self.size_bytes >> 20} MiB"
        return f"<PageAllocator {self.kind}: {state}>"


def _reserve(size_bytes: int | None) -> tuple[Reservation, Arena]:
    """Reserve `size_bytes`, or the most that can be had up to the default, with its page records."""
    wanted = size_bytes or DEFAULT_SIZE_BYTES
    while True:
        try:
            reservation = Reservation(wanted)
            return reservation, Arena(reservation.base_vaddr, reservation.nr_slabs)
        except (OSError, MemoryError):
            if size_bytes is not None or wanted <= _LEAST_SIZE_BYTES:
                raise
            wanted //= 2


def _weakly(allocator: PageAllocator) -> Callable[[int, int], bool]:
    """Return `allocator.grow` for an arena to call, without keeping the allocator alive."""
    ref = weakref.ref(allocator)

    def grow(order: int, nid: int) -> bool:
        allocator = ref()
        return allocator is not None and allocator.grow(order, nid)

    return grow

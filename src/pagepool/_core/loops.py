# SPDX-License-Identifier: MIT
"""Compiled loops for the benchmarks, in the shape of the kernel's ``bench_page_pool_simple.c``.

Nothing in the library calls these. They are compiled with it because what they time is the compiled pair, without the
interpreter: allocate one page, give it back, over and over, on the owner's thread and without the GIL.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import NO_PAGE
from cython.cimports.pagepool._core.atomic import pp_add64, pp_lock, pp_unlock
from cython.cimports.pagepool._core.tiers import Tiers, give_one, take_one
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)


class Empty:
    """Two methods that do nothing: what any compiled method call costs."""

    def take(self):
        """Return None."""

    def give(self, thing):
        """Ignore `thing`."""


# -- baselines ---------------------------------------------------------------------------------------------------


def for_loop(rounds: uint64_t) -> int:
    """Count to `rounds` and do nothing else: what the other loops contain besides their work."""
    with cython.nogil:
        empty_loop(rounds)
    return rounds


def atomic_inc(rounds: uint64_t) -> int:
    """Add 1 to a word, atomically, `rounds` times."""
    with cython.nogil:
        atomic_loop(rounds)
    return rounds


def lock(rounds: uint64_t) -> int:
    """Take and release an uncontended spin lock, `rounds` times."""
    with cython.nogil:
        lock_loop(rounds)
    return rounds


def fresh_page(rounds: uint64_t) -> int:
    """Map 4 KiB of anonymous memory, write one byte, unmap it, `rounds` times: what a recycled page saves.

    Raises
    ------
    MemoryError
        The kernel has no memory.
    """
    done: uint64_t
    with cython.nogil:
        done = fresh_loop(rounds)
    if done < rounds:
        raise MemoryError("mmap of 4 KiB failed")
    return rounds


# -- the pool ----------------------------------------------------------------------------------------------------


def fast_path(pool: Tiers, rounds: uint64_t) -> int:
    """Allocate one, put one into the cache, `rounds` times (``page_pool01_fast_path``)."""
    pool.enter_owner()
    with cython.nogil:
        fast_path_loop(pool, rounds)
    pool.leave_owner()
    return rounds


def bulk(pool: Tiers, n: uint32_t, rounds: uint64_t, direct: cython.bint) -> int:
    """Allocate `n` and put them with one call each, into the cache or (``page_pool02_ptr_ring``) through the ring.

    Returns
    -------
    int
        Pages handled, ``n * rounds``.
    """
    ids: uint32_t[256]
    if not 1 <= n <= 256:
        raise ValueError(f"{n} pages: 1 to 256")
    pool.enter_owner()
    with cython.nogil:
        bulk_loop(pool, ids, n, rounds, direct)
    pool.leave_owner()
    return n * rounds


def slow(pool: Tiers, rounds: uint64_t) -> int:
    """Take one from the page allocator's side and give it back there, `rounds` times (``page_pool03_slow``)."""
    pool.enter_owner()
    with cython.nogil:
        slow_loop(pool, rounds)
    pool.leave_owner()
    return rounds


# -- without the GIL ---------------------------------------------------------------------------------------------


def empty_loop(rounds):
    i: uint64_t
    for i in range(rounds):
        pp_barrier()  # else the compiler sees that there is nothing to do


def atomic_loop(rounds):
    i: uint64_t
    word: uint64_t = 0
    for i in range(rounds):
        pp_add64(cython.address(word), 1)


def lock_loop(rounds):
    i: uint64_t
    word: uint32_t = 0
    for i in range(rounds):
        pp_lock(cython.address(word))
        pp_unlock(cython.address(word))


def fresh_loop(rounds):
    i: uint64_t
    memory: cython.p_void
    for i in range(rounds):
        memory = mmap(cython.NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            return i
        cython.cast(cython.p_char, memory)[0] = 1
        munmap(memory, 4096)
    return rounds


def fast_path_loop(pool, rounds):
    i: uint64_t
    id: uint32_t = 0
    for i in range(rounds):
        id = take_one(pool)
        if id != NO_PAGE:
            give_one(pool, id)


def bulk_loop(pool, ids, n, rounds, direct):
    i: uint64_t
    got: uint32_t
    for i in range(rounds):
        got = pool.alloc_ids(ids, n)
        pool.put_ids(ids, got, -1, direct)


def slow_loop(pool, rounds):
    # As the kernel's third line: an extra reference makes the page leave the pool at its put.
    i: uint64_t
    id: uint32_t = NO_PAGE
    for i in range(rounds):
        if pool.alloc_ids(cython.address(id), 1):
            pool.put_referenced(id)

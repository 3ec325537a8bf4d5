# SPDX-License-Identifier: MIT
# Header of loops.py: nothing is cimported from it.
from libc.stdint cimport uint32_t, uint64_t

from pagepool._core.tiers cimport Tiers

cdef extern from *:
    """
    /* The compiler may not carry anything over this line, nor drop the loop around it. */
    static inline void pp_barrier(void) { __asm__ volatile("" ::: "memory"); }
    """
    void pp_barrier() noexcept nogil

cdef void empty_loop(uint64_t rounds) noexcept nogil
cdef void atomic_loop(uint64_t rounds) noexcept nogil
cdef void lock_loop(uint64_t rounds) noexcept nogil
cdef uint64_t fresh_loop(uint64_t rounds) noexcept nogil
cdef void fast_path_loop(Tiers pool, uint64_t rounds) noexcept nogil
cdef void bulk_loop(Tiers pool, uint32_t *ids, uint32_t n, uint64_t rounds, bint direct) noexcept nogil
cdef void slow_loop(Tiers pool, uint64_t rounds) noexcept nogil

# SPDX-License-Identifier: MIT
# What pp_atomic.h offers, for cimport by name.
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

cdef extern from "pp_atomic.h" nogil:
    bint PP_GIL_DISABLED
    uint64_t pp_load64(const uint64_t *p)
    void pp_store64(uint64_t *p, uint64_t v)
    uint32_t pp_load32(const uint32_t *p)
    void pp_store32(uint32_t *p, uint32_t v)
    uint64_t pp_load64_acquire(const uint64_t *p)
    uint32_t pp_load32_acquire(const uint32_t *p)
    void pp_store32_release(uint32_t *p, uint32_t v)
    uint32_t pp_load32_total(const uint32_t *p)
    uint32_t pp_add32_total(uint32_t *p, uint32_t v)
    void pp_store32_total(uint32_t *p, uint32_t v)
    void pp_fence()
    uint64_t pp_add64(uint64_t *p, uint64_t v)
    uint64_t pp_sub64(uint64_t *p, uint64_t v)
    uint32_t pp_add32(uint32_t *p, uint32_t v)
    bint pp_cas64(uint64_t *p, uint64_t expected, uint64_t wanted)
    bint pp_cas64_gil(uint64_t *p, uint64_t expected, uint64_t wanted)
    uint32_t pp_swap32_gil(uint32_t *p, uint32_t v)
    void pp_lock(uint32_t *lock)
    void pp_unlock(uint32_t *lock)
    uintptr_t pp_thread_id()
    int pp_current_node()
    int pp_is_finalizing()
    bint pp_likely(bint x)
    bint pp_unlikely(bint x)

# SPDX-License-Identifier: MIT
# Header of ptr_ring.py: a bounded FIFO of ids, many producers, one consumer.
from libc.stdint cimport uint32_t, uint64_t

cdef class PtrRing:
    # Producers' side. head moves under the lock only; the consumer reads it with acquire.
    cdef uint32_t lock
    cdef uint32_t head
    cdef uint32_t closed                  # set under the lock: from then on no id gets in
    cdef uint64_t nr_produced
    cdef uint64_t nr_full                 # how often a producer found it full, a bulk counting once; atomic, no lock
    cdef char _producer_pad[64]           # keeps the consumer's words off the producers' cache line
    # Consumer's side. tail is moved by the one consumer; producers read it with acquire.
    cdef uint32_t tail
    cdef char _consumer_pad[64]
    # Read by both, written never.
    cdef uint32_t *slots
    cdef uint32_t mask
    cdef readonly uint32_t size           # entries
    cdef bint is_pools                    # a pool believes what is in it: Python may only look

    cdef uint32_t count(self) noexcept nogil
    cdef uint32_t room_locked(self) noexcept nogil
    cdef void push_locked(self, uint32_t id) noexcept nogil
    cdef uint32_t consume_bulk(self, uint32_t *out, uint32_t n) noexcept nogil
    cdef int _must_be_free(self) except -1

# SPDX-License-Identifier: MIT
# Header of _rings.py: the four rings of one AF_XDP socket, and where each page is.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from pagepool._core.tiers cimport Tiers

cdef extern from "<sys/socket.h>" nogil:
    ctypedef long ssize_t
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    ssize_t sendto(int fd, const void *buffer, size_t size, int flags, const sockaddr *to, socklen_t size_to)
    ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, sockaddr *of, socklen_t *size_of)
    int MSG_DONTWAIT

# struct xdp_desc of linux/if_xdp.h.
ctypedef struct xsk_desc_t:
    uint64_t addr            # byte offset in the UMEM
    uint32_t len             # bytes of the frame
    uint32_t options

# A mapped ring. The kernel owns one index, we own the other; ours is kept here too, so that it is never read back.
ctypedef struct xsk_ring_t:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    void *entries            # xsk_desc_t for rx and tx, uint64_t for fill and completion
    uint32_t mask
    uint32_t size            # entries; 0: there is no such ring
    uint32_t mine            # our index, free-running modulo 2**32

cdef enum:
    CHUNK_SHIFT = 12
    CHUNK_BYTES = 4096
    MIN_TX_BYTES = 14        # an Ethernet header; the kernel refuses less
    BURST = 64               # ids moved between a ring and the pool at once
    NOGIL_FRAMES = 2048      # from this budget on, a poll lets other Python threads run meanwhile; why: docs/design.md
    RING_NEED_WAKEUP = 1

# Where a page of the arena is, as far as this socket knows.
cdef enum:
    AT_REST = 0              # not in our rings: in a pool, or lent to the user
    AT_RX = 1                # in the fill ring, with the kernel, or in the rx ring
    AT_TX = 2                # in the tx ring, with the kernel, or in the completion ring

cdef class XskRings:
    cdef readonly Tiers pool
    cdef readonly int fd
    cdef xsk_ring_t rx
    cdef xsk_ring_t tx
    cdef xsk_ring_t fill
    cdef xsk_ring_t completion
    cdef uint8_t *where                   # AT_*, one byte for each page of the arena
    cdef uint32_t nr_pages
    cdef uint32_t tx_lock                 # guards the tx ring's producer side: other queues send here too
    cdef uint32_t completion_lock         # guards the completion ring's consumer side
    cdef bint need_wakeup
    cdef bint busy_poll
    cdef uint32_t inside                  # threads in a method; `close` waits for them
    cdef uint32_t is_closed
    cdef dict sources                     # pool slot -> pool whose pages were sent here by a redirect
    cdef uint32_t *strangers              # completed pages of other pools, on their way home
    cdef uint32_t nr_strangers
    cdef readonly int64_t offset          # of all frames of the last poll, -1 where they differ
    cdef readonly uint32_t empty_polls    # in a row
    cdef readonly uint64_t rx_frames
    cdef readonly uint64_t tx_frames
    cdef readonly uint64_t tx_completed
    cdef readonly uint64_t tx_kicks       # system calls
    cdef readonly uint64_t rx_kicks
    cdef readonly uint64_t fill_short     # polls that found too few pages to fill up
    cdef readonly uint64_t bad_descriptors

    cdef uint32_t _take(self, uint32_t *ids, uint32_t *lengths, uint32_t *offsets, uint32_t budget) noexcept nogil
    cdef uint32_t _fill_up(self) noexcept nogil
    cdef uint32_t _reap(self, bint direct) noexcept nogil
    cdef uint32_t _submit(self, const uint32_t *ids, const uint32_t *lengths, const uint32_t *offsets, uint32_t n,
                          uint32_t slot) noexcept nogil
    cdef int _kick_tx(self) noexcept nogil
    cdef void _kick_rx(self) noexcept nogil
    cdef uint32_t _run(self, uint32_t *ids, uint32_t *lengths, uint32_t *offsets, uint32_t budget) noexcept nogil
    cdef int _send_home(self) except -1
    cdef int _enter(self) except -1
    cdef bint _enter_open(self) noexcept
    cdef int _leave(self) except -1
    cdef uint32_t _count(self, xsk_ring_t *ring, bint ours_is_producer) noexcept

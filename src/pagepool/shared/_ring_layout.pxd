# SPDX-License-Identifier: MIT
# The two rings that a lender and a borrower share, as they lie in memory. Both sides include this, and nothing else.
#
# One page of words, each alone in two cache lines (processors fetch lines in pairs), then the descriptors, then the
# returned ids. Every word has one writer, but for the two bells: who is about to sleep sets his own, and the other side
# clears it when it rings. A word of the other side is a number to be checked, never an index to be followed.
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t

cdef enum:
    RING_MAGIC = 0x47525050          # "PPRG"
    RING_VERSION = 1
    WORDS_BYTES = 4096
    MIN_SLOTS = 2
    MAX_SLOTS = 1 << 20

# Where each word is, in bytes from the start.
cdef enum:
    AT_MAGIC = 0                     # lender, once: uint32
    AT_VERSION = 4                   # lender, once: uint32
    AT_SLOTS = 8                     # lender, once: uint32
    AT_STATE = 128                   # lender: LINK_*
    AT_SENT = 256                    # lender: descriptors written, free-running
    AT_TAKEN = 384                   # borrower: descriptors taken, free-running; for figures only
    AT_BORROWER_BELL = 512           # borrower: 1 = ring me when you send
    AT_GIVEN = 640                   # borrower: returns written, free-running
    AT_REAPED = 768                  # lender: returns taken, free-running; for figures only
    AT_LENDER_BELL = 896             # lender: 1 = ring me when you return

cdef enum:
    LINK_OPEN = 0
    LINK_CLOSED = 1                  # nothing more will come; what was taken stays good
    LINK_REVOKED = 2                 # what was taken may be overwritten at any time

# One descriptor: 32 bytes, so that it never lies in two cache lines.
ctypedef struct shared_desc_t:
    uint32_t id                      # of the page, in 4 KiB pages from the start of the arena
    uint32_t offset                  # bytes from the page's first byte
    uint32_t length                  # bytes
    uint32_t queue                   # where the frame came in, as the lender counts
    uint64_t timestamp_ns            # CLOCK_MONOTONIC
    uint64_t spare

# A frame to be lent, in private memory: what was looked at is what is lent.
ctypedef struct shared_frame_t:
    uint32_t id
    uint32_t offset
    uint32_t length

ctypedef struct shared_ring_t:
    uint8_t *words
    shared_desc_t *sent              # descriptors, lender -> borrower
    uint32_t *given                  # ids, borrower -> lender
    uint32_t size
    uint32_t mask

cdef inline uint32_t *ring_word(shared_ring_t *ring, int at) noexcept nogil:
    return <uint32_t *>(ring.words + at)

cdef inline uint64_t ring_bytes(uint32_t slots) noexcept nogil:
    # Whole pages.
    return (WORDS_BYTES + <uint64_t>slots * 36 + 4095) & ~<uint64_t>4095

cdef inline void ring_place(shared_ring_t *ring, uintptr_t vaddr, uint32_t slots) noexcept nogil:
    ring.words = <uint8_t *>vaddr
    ring.sent = <shared_desc_t *>(vaddr + WORDS_BYTES)
    ring.given = <uint32_t *>(vaddr + WORDS_BYTES + <uintptr_t>slots * sizeof(shared_desc_t))
    ring.size = slots
    ring.mask = slots - 1

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef inline void ring_bell(int fd) noexcept nogil:
    # A byte over the socket, never waiting. Not an eventfd: whether writing to one may block is a flag that both sides
    # can change, and a hostile one would make the other wait for ever. A full socket has bells enough in it.
    cdef char byte = 0
    if fd >= 0:
        send(fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec

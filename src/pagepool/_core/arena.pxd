# SPDX-License-Identifier: MIT
# Header of arena.py: the record of each page, and the buddy allocator's state.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t, uintptr_t

cdef enum:
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    PAGES_PER_SLAB = 512
    SLAB_ORDER = 9           # a slab is one block of the highest order, so no object ever spans two
    NR_ORDERS = 10
    NR_NODES = 64            # NUMA nodes that an arena keeps apart
    NO_PAGE = 0xFFFFFFFF

# A page's word: who it belongs to and who refers to it, in 64 bits, so that one load and one compare answer
# "is this page lent by me, whole, with no other reference?" -- the only question the fast path has.
#
#     0-3 state | 4-7 flags | 8-23 pool slot | 24-47 pool references | 48-63 foreign references
#
# Idle pages rest at one pool reference and one foreign reference (the pool's own), as in the kernel.
cdef enum:
    PG_OFF = 0               # no memory behind it, or the inside of a larger block
    PG_BUDDY = 1             # head of a free block of the page allocator
    PG_FRESH = 2             # out of the page allocator, not yet in a pool
    PG_CACHED = 3            # in the pool's cache
    PG_RINGED = 4            # in the pool's ptr_ring
    PG_LENT = 5              # somebody outside the pool holds it
    PG_DETACHED = 6          # left its pool, held by foreign references only
    PG_STATE_MASK = 0xF
    NR_STATES = 16
    PG_HANDLE = 0x10         # a Page handle was made since it was lent: its generation must move when it comes home
    PG_MAPPED = 0x20         # mapped on its own (MapGranularity.PAGE); unmapped exactly once
    PG_PFMEMALLOC = 0x40     # out of the emergency reserve: never recycled
    PG_SPENT = 0x80          # the holder's own reference is gone, or was split: the id alone puts nothing any more
    PG_SLOT_SHIFT = 8
    PG_REF_SHIFT = 24
    PG_MM_SHIFT = 48
    PG_REF_MAX = 0xFFFFFF
    PG_MM_MAX = 0xFFFF

cdef inline uint32_t pg_state(uint64_t word) noexcept nogil:
    return <uint32_t>(word & PG_STATE_MASK)

cdef inline uint32_t pg_slot(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> PG_SLOT_SHIFT) & 0xFFFF)

cdef inline uint32_t pg_refs(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> PG_REF_SHIFT) & PG_REF_MAX)

cdef inline uint32_t pg_mm(uint64_t word) noexcept nogil:
    return <uint32_t>(word >> PG_MM_SHIFT)

cdef inline uint64_t pg_word(uint32_t state, uint32_t slot, uint64_t flags) noexcept nogil:
    # An idle or freshly lent page: one reference of each kind.
    return (state | flags | (<uint64_t>slot << PG_SLOT_SHIFT)
            | (<uint64_t>1 << PG_REF_SHIFT) | (<uint64_t>1 << PG_MM_SHIFT))

cdef inline uint64_t pg_with_state(uint64_t word, uint32_t state) noexcept nogil:
    return (word & ~<uint64_t>PG_STATE_MASK) | state

ctypedef struct pp_page_t:
    uint64_t word
    uint64_t dma_addr        # only where the page is mapped on its own
    uint32_t generation      # moves each time the page comes home from a handle
    uint8_t order            # of the block or object this page is the head of
    uint8_t nid
    uint8_t pad[2]
    uint32_t next            # free list of the page allocator
    uint32_t prev

cdef class Arena:
    cdef pp_page_t *pages
    cdef readonly uint64_t base_vaddr
    cdef readonly uint32_t nr_slabs
    cdef readonly uint32_t nr_pages
    cdef public object grow               # callable(order, nid) -> bool, or None
    cdef public object keep_alive         # what owns the memory
    cdef public uint32_t reserve_pages    # the last so many free pages are for emergencies
    cdef readonly dict dma_maps           # (id(dev), dma_dir) -> DmaMap
    cdef readonly uint64_t pools_made     # ever, dead ones included: their data may lie in free pages
    cdef public object only_pools         # why no more pools may come, or None
    cdef list _free_slots
    cdef uint32_t _next_slot
    cdef uint32_t _lock                   # guards everything below
    cdef uint8_t *_slab_on
    cdef uint32_t _nodes_seen             # how many different nodes have slabs
    cdef int32_t _first_nid
    cdef public bint follow_cpu            # a pool without a node of its own takes pages from where it runs
    cdef uint64_t _dry_nodes              # a bit for each node for which growing gave memory of another
    cdef uint64_t _nr_free
    cdef uint64_t _nr_added
    cdef uint64_t _alloc_calls
    cdef uint64_t _free_calls
    cdef uint64_t _pages_allocated
    cdef uint64_t _pages_freed
    cdef uint32_t _free_list[NR_NODES][NR_ORDERS]

    cdef uint32_t alloc_bulk(self, uint32_t order, uint32_t n, int32_t nid, int mode, uint32_t *out) noexcept nogil
    cdef void free_block(self, uint32_t id, uint32_t order) noexcept nogil
    cdef uint32_t _take_block(self, uint32_t order, uint32_t nid) noexcept nogil
    cdef void _push(self, uint32_t id, uint32_t order) noexcept nogil
    cdef void _unlink(self, uint32_t id) noexcept nogil
    cdef void _give_block(self, uint32_t id, uint32_t order) noexcept nogil
    cdef uint64_t _walk(self, uint32_t *bad) noexcept nogil
    cdef bint is_dry(self, int32_t nid) noexcept nogil
    cdef void note_dry(self, int32_t nid) noexcept nogil
    cdef int32_t preferred_node(self, int32_t nid) noexcept nogil
    cdef uint32_t new_slot(self) except 0
    cdef void drop_slot(self, uint32_t slot) noexcept

# How far alloc_bulk may go.
cdef enum:
    ALLOC_THIS_NODE = 0      # only pages of the node, above the reserve
    ALLOC_ANY_NODE = 1       # then of any node
    ALLOC_RESERVE = 2        # then the emergency reserve: such pages carry PG_PFMEMALLOC

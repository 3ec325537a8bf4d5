# SPDX-License-Identifier: MIT
# Header of tiers.py: the three tiers of a pool, over ids. Drivers cimport this one.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t

from pagepool._core.arena cimport NO_PAGE, pp_page_t
from pagepool._core.atomic cimport pp_likely, pp_load32, pp_load64, pp_store64, pp_unlikely
from pagepool._core.dma_map cimport DmaMap
from pagepool._core.page cimport Home, Page
from pagepool._core.ptr_ring cimport PtrRing

cdef enum:
    CACHE_SIZE = 128         # twice the NAPI budget: half to hand out, half to take back dropped frames
    CACHE_REFILL = 64
    NO_MAP = -1              # map_mode of a pool without DMA_MAP, beside MAP_ARENA, MAP_SLAB, MAP_PAGE

# Why a page left the pool.
cdef enum:
    LEFT_REFCNT = 0          # somebody else holds the memory, or it is an emergency page
    LEFT_RING_FULL = 1
    LEFT_WAIVE = 2           # wrong NUMA node, seen at refill
    LEFT_NID = 3             # update_nid emptied the cache
    LEFT_CLOSED = 4          # the pool was closed
    LEFT_DETACHED = 5        # release_page
    LEFT_MAP = 6             # never came in: its mapping failed
    LEFT_SYNC = 7            # its sync for the device failed
    NR_LEFT = 8

cdef class Tiers(Home):
    # -- the owner's cache lines: nobody else writes here
    cdef uintptr_t owner                  # thread that may allocate; 0 until the first does
    cdef uintptr_t alloc_thread           # owner, while the fast way in is open; else 0
    cdef uintptr_t put_thread             # owner, while the fast way back is open; else 0
    cdef uint32_t busy                    # > 0: the owner is inside, perhaps without the GIL
    cdef uint32_t cache_n
    cdef uint32_t hold_cnt                # free-running, modulo 2**32
    cdef uint32_t high_water              # most objects that were ever lent at once
    cdef uint32_t mark                    # no new record while the cache holds at least so many
    cdef uint64_t word_cached             # what a page's word is in each state, as long as nothing special is up
    cdef uint64_t word_ringed
    cdef uint64_t word_lent
    cdef uint64_t word_lent_handle
    cdef uint64_t alloc_fast
    cdef uint64_t alloc_slow
    cdef uint64_t alloc_slow_high_order
    cdef uint64_t alloc_empty
    cdef uint64_t alloc_refill
    cdef uint64_t alloc_waive
    cdef uint64_t recycle_cached
    cdef uint64_t recycle_cache_full
    cdef uint64_t limit_hits
    cdef uint32_t cache[CACHE_SIZE]
    cdef uint32_t leaving                 # entries of the cache that `destroy` has taken and not yet looked at
    # -- everybody's, changed by atomics
    cdef char _pad[64]
    cdef uint32_t release_cnt             # free-running, modulo 2**32
    cdef uint64_t recycle_released_refcnt
    cdef uint64_t ring_full_pages         # pages, where the kernel's counter counts bulks
    cdef uint64_t left[NR_LEFT]
    cdef uint64_t rejected                # ids of a bulk put that were foreign or not lent
    cdef uint64_t page_maps
    cdef uint64_t page_unmaps
    cdef uint64_t syncs
    # -- written at creation and on the slow path only
    cdef readonly PtrRing ring
    cdef DmaMap dma_map
    cdef uint64_t *slab_dma
    cdef object dev
    cdef object dma_dir_obj
    cdef int map_mode
    cdef bint sync                        # DMA_SYNC_DEV, and the device wants it
    cdef bint zero
    cdef bint track                       # every lending and put is noted: no fast ways
    cdef bint auto_direct                 # the owner's plain puts go to the cache
    cdef bint open                        # False after close: nothing is handed out
    cdef uint32_t order
    cdef int32_t nid
    cdef uint32_t limit
    cdef uint32_t max_len
    cdef uint32_t dma_offset
    cdef dict pending                     # thread -> exception of a slow path inside a nogil loop of its; or None
    cdef object observer                  # called on hold and release, or None: the tracepoints
    cdef object watermark                 # (high, low, callback, above) or None

    # For drivers and loops. Bracket a nogil stretch with enter/leave; both need the GIL.
    cdef int enter_owner(self) except -1
    cdef int leave_owner(self) except -1
    cdef uint32_t alloc_ids(self, uint32_t *out, uint32_t n) noexcept nogil
    cdef uint32_t put_ids(self, const uint32_t *ids, uint32_t n, int64_t dma_sync_size, bint direct) noexcept nogil

    cdef void put_referenced(self, uint32_t id) noexcept nogil

    cdef uint32_t get_one(self) noexcept nogil
    cdef uint32_t refill(self) noexcept nogil
    cdef uint32_t slow(self) except? NO_PAGE
    cdef uint32_t slow_noexcept(self) noexcept
    cdef int enter_page(self, uint32_t id) except -1
    cdef void keep(self, uint32_t id) noexcept
    cdef int crossed(self) except -1
    cdef uint32_t hit_run(self, uint32_t *out, uint32_t n) noexcept nogil
    cdef uint32_t cache_run(self, const uint32_t *ids, uint32_t n) noexcept nogil
    cdef uint32_t ring_run(self, const uint32_t *ids, uint32_t n) noexcept nogil
    cdef bint seize(self, uint32_t id) noexcept nogil
    cdef int put_id(self, uint32_t id, int64_t dma_sync_size, bint direct, bint holder, bint *full) except -1
    cdef int put_id_noexcept(self, uint32_t id, int64_t dma_sync_size, bint direct, bint *full) noexcept
    cdef int last_reference(self, uint32_t id, uint64_t word, int64_t dma_sync_size, bint direct, bint *full) except -1
    cdef int leave(self, uint32_t id, int reason) except -1
    cdef void leave_noexcept(self, uint32_t id, int reason) noexcept
    cdef int unmap_page(self, uint32_t id) except -1
    cdef void drop_mm(self, uint32_t id, uint32_t n) noexcept nogil
    cdef int sync_for_device(self, uint32_t id, int64_t dma_sync_size) except -1
    cdef void note_high_water(self) noexcept nogil
    cdef uint32_t lent_now(self) noexcept nogil
    cdef int set_fast_threads(self) except -1
    cdef object taken_pending(self)
    cdef int raise_pending(self) except -1
    cdef void note_pending(self, object error) noexcept
    cdef object the_observer(self)
    cdef int unmap_lent(self, uint32_t id) except -1

cdef inline uint32_t held_by(Tiers self) noexcept nogil:
    # Objects not yet back at the page allocator.
    return self.hold_cnt - pp_load32(&self.release_cnt)

# One page each way for compiled loops on the owner's thread, between enter_owner and leave_owner.
cdef inline uint32_t take_one(Tiers self) noexcept nogil:
    cdef uint32_t id
    if pp_likely(self.cache_n != 0):
        id = self.cache[self.cache_n - 1]
        if pp_likely(pp_load64(&self.pages[id].word) == self.word_cached):
            pp_store64(&self.pages[id].word, self.word_lent)
            self.cache_n -= 1
            self.alloc_fast += 1
            if pp_unlikely(self.cache_n < self.mark):
                self.note_high_water()
            return id
    if self.alloc_ids(&id, 1):
        return id
    return NO_PAGE

cdef inline bint give_one(Tiers self, uint32_t id) noexcept nogil:
    if pp_likely(id < self.nr_pages and self.cache_n < CACHE_SIZE and self.put_thread != 0):
        if pp_likely(pp_load64(&self.pages[id].word) == self.word_lent):
            pp_store64(&self.pages[id].word, self.word_cached)
            self.cache[self.cache_n] = id
            self.cache_n += 1
            self.recycle_cached += 1
            return True
    return self.put_ids(&id, 1, -1, True) != 0

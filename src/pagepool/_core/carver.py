# SPDX-License-Identifier: MIT
"""Handles over the tiers: whole pages, and fragments carved from one page.

A page being carved gets a large number of pool references at once (the *bias*); each fragment takes one of them
without an atomic. When the next fragment does not fit, the rest of the bias is dropped in one operation: if nobody
uses the page any more it is carved anew in place, else it comes home when its last fragment does.

Invariant: a page being carved has ``FRAG_BIAS - fragments put so far`` pool references.
"""

import time
import traceback

import cython
from cython.cimports.cpython.exc import PyErr_Fetch, PyErr_Restore, PyErr_SetObject, PyErr_WriteUnraisable
from cython.cimports.cpython.object import PyObject, PyTypeObject
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import (
    NO_PAGE,
    PG_FRESH,
    PG_HANDLE,
    PG_LENT,
    PG_MM_SHIFT,
    PG_PFMEMALLOC,
    PG_REF_SHIFT,
    PG_SPENT,
    pg_mm,
    pg_refs,
    pg_state,
    pg_with_state,
)
from cython.cimports.pagepool._core.atomic import (
    PP_GIL_DISABLED,
    pp_cas64,
    pp_cas64_gil,
    pp_is_finalizing,
    pp_likely,
    pp_load32,
    pp_load64,
    pp_store64,
    pp_swap32_gil,
    pp_thread_id,
)
from cython.cimports.pagepool._core.page import KIND_DETACHED, KIND_FOREIGN, KIND_FRAGMENT, KIND_HOLDER, home_of
from cython.cimports.pagepool._core.tiers import CACHE_SIZE, LEFT_CLOSED, LEFT_REFCNT, LEFT_SYNC

from pagepool.errors import DoublePutError, ForeignPageError, PageLeakError, WrongThreadError


def call_site() -> str:
    """Return ``file:line in function`` of the nearest frame; compiled rooms have none of their own."""
    (frame,) = traceback.extract_stack(limit=1)
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def page_died(page):
    # Page's tp_dealloc, for a page of any pool: the object has no references left. A handle that still holds its
    # page puts it, then its memory goes to the pool's store.
    home: Carver = cython.cast(Carver, cython.cast(Page, page).home)
    dead: Page
    id: uint32_t
    if cython.cast(Page, page).live:
        id = cython.cast(Page, page).id
        if pp_likely(
            home.put_thread == pp_thread_id()
            and home.cache_n < CACHE_SIZE
            and not PP_GIL_DISABLED
            and not home.strict
            and cython.cast(Page, page).kind == KIND_HOLDER
            and home.pages[id].generation == cython.cast(Page, page).generation
            and pp_load64(cython.address(home.pages[id].word)) == home.word_lent_handle
        ):
            pp_store64(cython.address(home.pages[id].word), home.word_cached)
            home.pages[id].generation += 1
            home.cache[home.cache_n] = id
            home.cache_n += 1
            home.recycle_cached += 1
            cython.cast(Page, page).live = 0
        else:
            # The long way runs Python: the object must look alive, and a pending exception must not be seen.
            Py_SET_REFCNT(page, 1)
            dead = cython.cast(Page, page)
            home.bury(dead)
            dead = None
            if pp_refcnt(page) > 1:  # somebody (an unraisable hook) kept the dead handle: it dies later
                Py_DECREF(cython.cast(object, page))
                return
            Py_SET_REFCNT(page, 0)
    if not PP_GIL_DISABLED and home.n_kept < KEPT_HANDLES:
        home.kept[home.n_kept] = page
        home.n_kept += 1
        pp_page_uncount(page)
    else:
        pp_page_free(page)
    Py_DECREF(home)  # the handle's; the local one is counted by itself


class Carver(Tiers):
    """Base of `PagePool`; not for direct use."""

    def __dealloc__(self):
        while self.n_kept:
            self.n_kept -= 1
            pp_page_forget(self.kept[self.n_kept])

    # -- handles -------------------------------------------------------------------------------------------------

    def bury(self, page):
        # A destructor runs anywhere, also while an exception is on its way: that one is put aside and back.
        kind: cython.pointer[PyObject] = cython.NULL
        value: cython.pointer[PyObject] = cython.NULL
        trace: cython.pointer[PyObject] = cython.NULL
        PyErr_Fetch(cython.address(kind), cython.address(value), cython.address(trace))
        try:
            self.handle_died(page)
        except BaseException as error:
            if not pp_is_finalizing():
                PyErr_SetObject(type(error), error)  # caught is cleared: the hook would see none
                PyErr_WriteUnraisable(self)
        PyErr_Restore(kind, value, trace)

    def new_page(self, id, kind, offset, length):
        page: Page
        if pp_likely(self.n_kept != 0):
            self.n_kept -= 1
            page = cython.cast(Page, pp_page_revive(self.kept[self.n_kept]))
            Py_DECREF(page)  # the cast counted it once more
            Py_INCREF(self)  # `home` counts again
        else:
            page = cython.cast(Page, pp_page_make(cython.cast(cython.pointer[PyTypeObject], Page), ()))
            page.home = cython.cast(cython.pointer[PyObject], self)
            Py_INCREF(self)
        page.id = id
        page.generation = self.pages[id].generation
        page.kind = kind
        page.offset = offset
        page.length = length
        page.live = 1
        page.exports = 0
        page.readonly = False
        return page

    def take_page(self):
        # The way in when something is special (or nothing is yet): claims the pool, waits for nobody.
        id: uint32_t
        page: Page = None
        self.enter_owner()
        try:
            id = self.get_one()
            if id == NO_PAGE:
                id = self.slow()
            if id != NO_PAGE:
                word: uint64_t = pp_load64(cython.address(self.pages[id].word))
                pp_store64(cython.address(self.pages[id].word), pg_with_state(word, PG_LENT) | PG_HANDLE)
                page = self.new_page(id, KIND_HOLDER, 0, self.object_bytes)
                if self.cache_n < self.mark:
                    self.note_high_water()
                if self.track:
                    self.alloc_sites[id] = (time.monotonic(), call_site())
        finally:
            self.leave_owner()
        return page

    def handle_died(self, page):
        if not page._mine():  # its id went home in a bulk: nothing of ours any more
            page.live = 0
            return 0
        id: uint32_t = page.id
        strict: cython.bint = self.strict and page.kind < KIND_FOREIGN
        self.handle_put(page, -1, False)
        if strict:  # a destructor cannot raise: this reaches sys.unraisablehook
            raise PageLeakError(f"page {id} of {self!r} died without a put; it went home, but the pool is strict")
        return 0

    def handle_put(self, page, dma_sync_size, allow_direct):
        id: uint32_t = page.id
        if pp_likely(
            self.put_thread == pp_thread_id()
            and page.kind == KIND_HOLDER
            and page.home == cython.cast(cython.pointer[PyObject], self)
            and self.pages[id].generation == page.generation
        ):
            with cython.critical_section(self):
                # `live` first: of two who put one handle, the other must not reach the page's next lending.
                if pp_likely(
                    self.cache_n < CACHE_SIZE
                    and (not PP_GIL_DISABLED or self.put_thread == pp_thread_id())
                    and pp_swap32_gil(cython.address(page.live), 0)
                ):
                    if pp_likely(
                        pp_cas64_gil(cython.address(self.pages[id].word), self.word_lent_handle, self.word_cached)
                    ):
                        self.pages[id].generation += 1
                        self.cache[self.cache_n] = id
                        self.cache_n += 1
                        self.recycle_cached += 1
                        return 0
                    page.live = 1
        if page.home != cython.cast(cython.pointer[PyObject], self):
            raise ForeignPageError(f"page {id} belongs to {home_of(page)!r}, not to {self!r}")
        if allow_direct and self.owner != pp_thread_id():
            raise WrongThreadError(
                f"page {id}: only the owner of {self!r} may put directly into its cache; put it without allow_direct"
            )
        return self.put_handle_slow(page, dma_sync_size, allow_direct or self.auto_direct)

    def put_handle_slow(self, page, dma_sync_size, direct):
        id: uint32_t = page.id
        kind: uint32_t
        lived: uint32_t
        if page.live and not page._mine():
            page.live = 0  # its id went home in a bulk
        with cython.critical_section(page):  # `detach` changes what a live handle holds
            lived = pp_swap32_gil(cython.address(page.live), 0)
            kind = page.kind
        if not lived:
            raise DoublePutError(f"page {id} was put{self.where_put(id)} already; {self!r} has it back")
        if kind >= KIND_FOREIGN:
            self.drop_mm(id, 1)
            return 0
        if self.alloc_sites is not None:
            self.put_sites[id] = (time.monotonic(), call_site())
        self.put_id(id, dma_sync_size, direct, kind == KIND_HOLDER, cython.NULL)
        if self.alloc_sites is not None and pg_state(pp_load64(cython.address(self.pages[id].word))) != PG_LENT:
            self.alloc_sites.pop(id, None)
        return 0

    def export_ended(self, page, kind):
        # `kind` is the handle's when its buffer was counted out: `detach` may change it any moment.
        if kind >= KIND_FOREIGN:
            self.drop_mm(page.id, 1)
        elif self.pages[page.id].generation == page.generation:
            self.put_id(page.id, -1, self.auto_direct, False, cython.NULL)
        return 0

    def where_put(self, id):
        if self.put_sites is not None and id in self.put_sites:
            return f" at {self.put_sites[id][1]}"
        return ""

    def reader(self, page):
        # Another handle, which owns one more reference of the kind that `page` holds.
        page._take_reference()
        other: Page = self.new_page(
            page.id, KIND_FOREIGN if page.kind >= KIND_FOREIGN else KIND_FRAGMENT, page.offset, page.length
        )
        other.readonly = True
        return other

    # -- fragments -----------------------------------------------------------------------------------------------

    def carve(self, size, whole_tail):
        # `size` is aligned and fits an object; `whole_tail`: it gets the rest where no other of its size would fit.
        # None where there is no page.
        page: Page = None
        self.enter_owner()
        try:
            if self.frag_page != NO_PAGE and self.frag_offset + size > self.object_bytes:
                self.drain_frag()
            if self.frag_page != NO_PAGE or self.start_frag():
                if whole_tail and self.frag_offset + 2 * size > self.object_bytes:
                    size = self.object_bytes - self.frag_offset
                page = self.new_page(self.frag_page, KIND_FRAGMENT, self.frag_offset, size)
                self.frag_users += 1
                self.frag_offset += size
        finally:
            self.leave_owner()
        return page

    def start_frag(self):
        page: Page = self.take_page()
        word: uint64_t
        if page is None:
            return False
        if self.frag_page != NO_PAGE:  # a device or a hook has carved meanwhile: this page goes home again
            return True
        # The handle's one reference becomes the bias; the handle itself is spent.
        page.live = 0
        self.frag_page = page.id
        self.frag_users = 0
        self.frag_offset = 0
        at: cython.pointer[uint64_t] = cython.address(self.pages[page.id].word)
        while True:
            word = pp_load64(at)
            if pp_cas64(at, word, (word + (cython.cast(uint64_t, FRAG_BIAS - 1) << PG_REF_SHIFT)) | PG_SPENT):
                return True

    def frag_idle(self):
        # Is there a page being carved of which nobody outside has a fragment?
        id: uint32_t = pp_load32(cython.address(self.frag_page))  # once: any thread asks while the owner carves
        return id != NO_PAGE and (
            pg_refs(pp_load64(cython.address(self.pages[id].word))) == FRAG_BIAS - self.frag_users
        )

    def drain_frag(self):
        # Drop what is left of the bias. In place again if nobody is left, as the kernel does, counters and all.
        id: uint32_t = self.frag_page
        at: cython.pointer[uint64_t] = cython.address(self.pages[id].word)
        spare: uint64_t = cython.cast(uint64_t, FRAG_BIAS - self.frag_users) << PG_REF_SHIFT
        self.frag_page = NO_PAGE
        word: uint64_t = pp_load64(at)
        while pg_refs(word) != FRAG_BIAS - self.frag_users:
            # Fragments are still out: the last of them takes the page home.
            if pp_cas64(at, word, word - spare):
                return 0
            word = pp_load64(at)
        # Nobody but us has a reference, so nobody can take one: the page is ours alone.
        self.pages[id].generation += 1
        plain: cython.bint = pg_mm(word) == 1 and not word & PG_PFMEMALLOC
        if self.open and plain and self.sync:
            try:
                self.sync_for_device(id, -1)
            except BaseException:
                pp_store64(at, pg_with_state(pp_load64(at), PG_FRESH))
                self.leave(id, LEFT_SYNC)
                raise
            word = pp_load64(at)  # a close meanwhile has unmapped it
        if self.open and plain and self.frag_page == NO_PAGE:  # the sync may have run anything
            self.recycle_cached += 1
            self.alloc_fast += 1
            pp_store64(at, word + (cython.cast(uint64_t, self.frag_users) << PG_REF_SHIFT))
            self.frag_page = id
            self.frag_offset = 0
            self.frag_users = 0
            return 0
        pp_store64(at, pg_with_state(word, PG_FRESH))
        # Not counted as released_refcnt: the kernel counts that where a page is put, and this one was not.
        self.leave(id, LEFT_REFCNT if self.open else LEFT_CLOSED)
        return 0

    # -- leaving the pool with the page --------------------------------------------------------------------------

    def foreign(self, page):
        # Take a foreign reference; `PagePool.get_page` is the door.
        page._take_reference()
        other: Page
        if page.kind >= KIND_FOREIGN:
            other = self.new_page(page.id, KIND_FOREIGN, page.offset, page.length)
            return other
        # The pool reference just taken pins the page while the foreign one is added; then it is given up.
        at: cython.pointer[uint64_t] = cython.address(self.pages[page.id].word)
        word: uint64_t
        while True:
            word = pp_load64(at)
            if pg_mm(word) == 0xFFFF:
                self.export_ended(page, KIND_HOLDER)
                raise BufferError(f"page {page.id} has too many foreign references")
            if pp_cas64(at, word, word + (cython.cast(uint64_t, 1) << PG_MM_SHIFT)):
                break
        other = self.new_page(page.id, KIND_FOREIGN, page.offset, page.length)
        # Given up as any other: where the handle was put meanwhile, this is the last one and decides.
        self.put_id(page.id, -1, self.auto_direct, False, cython.NULL)
        return other

    def detach(self, page):
        # Turn the references of a holder into foreign ones; false where somebody else holds a fragment.
        at: cython.pointer[uint64_t] = cython.address(self.pages[page.id].word)
        word: uint64_t
        exports: uint64_t
        with cython.critical_section(page):  # no buffer of it begins or ends meanwhile
            exports = page.exports
            while True:
                word = pp_load64(at)
                if page.live == 0 or page.kind != KIND_HOLDER:
                    return False
                if pg_state(word) != PG_LENT or pg_refs(word) != 1 + exports:
                    return False
                # One foreign reference for the handle, one for each of its buffers, and the pool's own, which leave()
                # drops.
                if pp_cas64(
                    at,
                    word,
                    pg_with_state(word, PG_FRESH) + ((1 + exports) << PG_MM_SHIFT) - (exports << PG_REF_SHIFT),
                ):
                    page.kind = KIND_DETACHED
                    return True


pp_page_install(cython.cast(cython.pointer[PyTypeObject], Page), page_died)

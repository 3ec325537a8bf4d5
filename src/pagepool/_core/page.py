# SPDX-License-Identifier: MIT
"""`Page`: the handle of one lent page, and a writable buffer over it.

A handle is small: pool, id, generation. It is not the page: pages live in the arena for ever, handles come and go.
After a put the handle is dead and says so; a recycled page is never reachable through an old handle, because the
page's generation moves when it comes home. A handle that dies without a put is a put.

Invariant: a live handle owns exactly one reference of its page, and each buffer that is exported owns one more.
"""

import cython
from cython.cimports.cpython.buffer import PyBuffer_FillInfo
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.pagepool._core.arena import (
    PG_DETACHED,
    PG_LENT,
    PG_MM_MAX,
    PG_MM_SHIFT,
    PG_REF_MAX,
    PG_REF_SHIFT,
    PG_SPENT,
    pg_mm,
    pg_refs,
    pg_state,
    pp_page_t,
)
from cython.cimports.pagepool._core.atomic import pp_cas64, pp_load64
from cython.cimports.pagepool._core.tensor import export_capsule

from pagepool._core.tensor import array_interface
from pagepool.errors import DeadPageError

_KINDS = ("lent", "fragment", "foreign reference", "detached")


class Home:
    """What a page knows of its pool; `PagePool` is the only real one."""

    def handle_put(self, page, dma_sync_size, allow_direct):
        raise NotImplementedError("a page needs a PagePool")

    def export_ended(self, page, kind):
        raise NotImplementedError("a page needs a PagePool")

    def dma_addr_of(self, id):
        raise NotImplementedError("a page needs a PagePool")

    def cpu_looks(self, page, index, size_bytes):
        raise NotImplementedError("a page needs a PagePool")

    def where_put(self, id):
        return ""

    def dlpack_device(self):
        raise NotImplementedError("a page needs a PagePool")

    def reader(self, page):
        raise NotImplementedError("a page needs a PagePool")


class Page:
    """One lent page (or a fragment of one): a handle and a buffer.

    Not made by calling the class: a pool's `alloc_pages` and its relatives give one.

    Notes
    -----
    Buffer protocol: one dimension of unsigned bytes, writable unless `readonly`, C-contiguous, page-aligned for a whole
    page. Each export holds a pool reference: a `put_page` while a view is alive never fails and never loses the view;
    the page goes home when the last view ends. ``page[i]``, ``page[a:b]`` (a view) and ``len(page)`` need no
    memoryview. DLPack and the array interface are made from that buffer: a tensor is one more view.

    Context: a handle may be passed between threads and put from any of them. Two threads may not write one page
    without their own agreement, as with any memory.
    """

    def __init__(self):
        raise TypeError("a Page comes from PagePool.alloc_pages(), it is not made")

    # -- the buffer ----------------------------------------------------------------------------------------------

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        if home_of(self).is_watched:
            home_of(self).cpu_looks(self, 0, self.length)
        # First, for it may refuse, and there is no release of what was refused.
        PyBuffer_FillInfo(buffer, self, self._at(0), self.length, self.readonly, flags)
        with cython.critical_section(self):  # `detach` counts both
            self._take_reference()
            self.exports += 1

    def __releasebuffer__(self, buffer: cython.pointer[Py_buffer]):
        kind: uint32_t
        with cython.critical_section(self):
            self.exports -= 1
            kind = self.kind
        home_of(self).export_ended(self, kind)

    def _take_reference(self):
        # One more reference of the kind this handle holds, taken only while it holds one: another thread may be
        # putting the page this very moment, and a page that is home must not be touched.
        kind: uint32_t
        one: uint64_t
        at: cython.pointer[uint64_t] = cython.address(home_of(self).pages[self.id].word)
        while True:
            self._must_live()
            word: uint64_t = pp_load64(at)
            kind = self.kind
            one = cython.cast(uint64_t, 1) << (PG_MM_SHIFT if kind >= KIND_FOREIGN else PG_REF_SHIFT)
            if kind < KIND_FOREIGN and pg_state(word) != PG_LENT:
                raise DeadPageError(f"page {self.id} was put; this handle is dead")
            if pg_refs(word) == PG_REF_MAX or pg_mm(word) == PG_MM_MAX:
                raise BufferError(f"page {self.id} has too many references")
            if pp_cas64(at, word, word + one):
                break
        if not self._mine():  # put and lent again between the look and the exchange
            home_of(self).export_ended(self, kind)
            self._must_live()
        return 0

    def _at(self, index):
        return cython.cast(
            cython.p_char,
            home_of(self).arena.base_vaddr + (cython.cast(uint64_t, self.id) << 12) + self.offset + index,
        )

    def _mine(self):
        # Does the page still belong to this handle? A foreign or detached handle owns its reference for sure.
        if self.live == 0 or self.kind >= KIND_FOREIGN:
            return self.live != 0
        page: cython.pointer[pp_page_t] = cython.address(home_of(self).pages[self.id])
        return page.generation == self.generation and (
            self.kind == KIND_FRAGMENT or not pp_load64(cython.address(page.word)) & PG_SPENT
        )

    def _must_live(self):
        if not self._mine():
            raise DeadPageError(f"page {self.id} was put{home_of(self).where_put(self.id)}; this handle is dead")
        return 0

    def __len__(self) -> int:
        return self.length

    def _byte(self, key):
        # Where byte `key` is; counted from the end if it is negative.
        index: cython.Py_ssize_t = key
        self._must_live()
        if index < 0:
            index += self.length
        if not 0 <= index < self.length:
            raise IndexError(f"byte {key} of a page of {self.length} bytes")
        if home_of(self).is_watched:
            home_of(self).cpu_looks(self, index, 1)
            self._must_live()  # the device is Python, and may have put it
        return self._at(index)

    def __getitem__(self, key):
        if isinstance(key, int):
            return cython.cast(cython.uchar, self._byte(key)[0])
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        at: cython.p_char
        byte: cython.Py_ssize_t
        if isinstance(key, int):
            byte = PyNumber_AsSsize_t(value, cython.NULL)  # may run Python, which may put the page: before the look
            at = self._byte(key)
            if self.readonly:
                raise TypeError(f"page {self.id} is read-only through this handle")
            if not 0 <= byte <= 255:
                raise ValueError(f"{value} is no byte")
            at[0] = cython.cast(cython.char, byte)
        else:
            memoryview(self)[key] = value

    def __delitem__(self, key):
        raise TypeError("bytes of a page cannot be deleted")

    # -- for array libraries -------------------------------------------------------------------------------------

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export the bytes as a DLPack capsule, ``(length,) uint8``: what ``from_dlpack(page)`` calls.

        Parameters
        ----------
        stream : None
            Host memory has none.
        max_version : tuple of int, optional
            The highest version the consumer knows; from ``(1, 0)`` on, the capsule says whether it is read-only.
        dl_device : tuple of int, optional
            Where the consumer wants it: the CPU, or where it is.
        copy : bool, optional
            ``True``: bytes of its own, and the page is not kept. Else never a copy.

        Returns
        -------
        PyCapsule
            It, or the tensor made of it, holds the page as a memoryview does: until the tensor dies, in any thread.

        Raises
        ------
        BufferError
            Another device, a stream, or a read-only page for a consumer that knows no versions.
        DeadPageError
            The page was put.

        Notes
        -----
        Context: any thread. Source: https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html
        """
        return export_capsule(self, home_of(self).dlpack_device(), stream, max_version, dl_device, copy, False)

    def __dlpack_device__(self):
        """Return DLPack's type and number of the memory's device.

        The CPU, ``(1, 0)``, or what the pool's device says of the memory that it has mapped.
        """
        return home_of(self).dlpack_device()

    @property
    def __array_interface__(self) -> dict:
        """NumPy's array interface, version 3; its ``data`` holds the page as a memoryview does."""
        return array_interface(self)

    def toreadonly(self):
        """Take a second handle on the same bytes, through which nobody can write.

        Returns
        -------
        Page
            It owns a pool reference of its own: put it or let it die, in any order with the other handles. Its buffers,
            capsules and array interface all say read-only.
        """
        return home_of(self).reader(self)

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def pool(self):
        """The `PagePool` it came from."""
        return home_of(self)

    @property
    def vaddr(self) -> int:
        """Where the CPU finds its first byte."""
        self._must_live()
        return home_of(self).arena.base_vaddr + (cython.cast(uint64_t, self.id) << 12) + self.offset

    @property
    def dma_addr(self) -> int:
        """Where the device finds its first byte.

        Raises
        ------
        NotMappedError
            The pool maps nothing, or the page was unmapped when it left the pool.
        """
        self._must_live()
        return home_of(self).dma_addr_of(self.id) + self.offset

    @property
    def nid(self) -> int:
        """NUMA node of its memory."""
        return home_of(self).pages[self.id].nid

    @property
    def refcount(self) -> int:
        """Pool references (holder, fragments, buffers) plus foreign references."""
        self._must_live()
        word: uint64_t = pp_load64(cython.address(home_of(self).pages[self.id].word))
        if pg_state(word) == PG_DETACHED:
            return pg_mm(word)
        return pg_refs(word) + pg_mm(word) - 1

    @property
    def is_live(self) -> bool:
        """Whether this handle still holds its page."""
        return self._mine()

    # -- giving it back ------------------------------------------------------------------------------------------

    def put(self, dma_sync_size: int = -1, allow_direct: bool = False) -> None:
        """Give the page back: ``pool.put_page(page, ...)``."""
        home_of(self).handle_put(self, dma_sync_size, allow_direct)

    def __enter__(self):
        self._must_live()
        return self

    def __exit__(self, *exc):
        if self._mine():
            self.put()

    def __reduce__(self):
        raise TypeError("a Page is memory of this process and cannot be pickled; copy it with bytes(page)")

    def __repr__(self) -> str:
        if not self._mine():
            return f"<Page {self.id}: dead>"
        state = pg_state(pp_load64(cython.address(home_of(self).pages[self.id].word)))
        kind = _KINDS[self.kind] if state in (PG_LENT, PG_DETACHED) else "lost"
        if self.readonly:
            kind += ", read-only"
        return f"<Page {self.id}: {self.length} bytes at vaddr {self.vaddr:#x}, {kind}>"

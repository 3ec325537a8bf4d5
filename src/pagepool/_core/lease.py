# SPDX-License-Identifier: MIT
"""`Lease`: one more reference to each of some pages, by id, and a buffer over them where they lie at equal distances.

What a `Page` export is for a handle, a lease is for ids: whoever owns the pages puts them as if it were not there, and
each comes home when both have let go. It is not a handle: it cannot be put, it only ends.

Invariant: a lease owns one pool reference of each page in `ids`, from its making to its death.
"""

from array import array

import cython
from cython.cimports.cpython.array import array as c_array
from cython.cimports.cpython.array import clone
from cython.cimports.cpython.buffer import (
    PyBUF_ANY_CONTIGUOUS,
    PyBUF_C_CONTIGUOUS,
    PyBUF_F_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_STRIDES,
    PyBuffer_FillInfo,
)
from cython.cimports.cpython.exc import PyErr_SetObject, PyErr_WriteUnraisable
from cython.cimports.cpython.object import PyObject
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy
from cython.cimports.pagepool._core.arena import (
    PG_LENT,
    PG_REF_MAX,
    PG_REF_SHIFT,
    PG_SPENT,
    pg_refs,
    pg_slot,
    pg_state,
)
from cython.cimports.pagepool._core.atomic import pp_cas64, pp_is_finalizing, pp_load64
from cython.cimports.pagepool._core.tensor import export_capsule

from pagepool.errors import ForeignPageError

_NO_IDS: c_array = array("I")


class Lease:
    """References to pages, held until this object and every buffer and tensor made of it have died.

    Not made by calling the class: `PagePool.lease` gives one.

    Attributes
    ----------
    offset, length : int
        The bytes of each page that it shows.
    strided : bool
        Whether it is one tensor: the ids are in arithmetic progression (or there is at most one).

    Notes
    -----
    Buffer protocol, DLPack and the array interface, where `strided`: ``(n, length) uint8``, writable, the rows as far
    apart as the pages, forwards or backwards; ``(length,)`` if it was asked for one id. Nothing is copied.

    Context: any thread.
    """

    def __init__(self):
        raise TypeError("a Lease comes from PagePool.lease(), it is not made")

    def __dealloc__(self):
        i: uint32_t
        pool: Tiers
        if self.home != cython.NULL:
            pool = pool_of(self)
            for i in range(self._n):
                try:
                    pool.put_id(self._ids[i], -1, pool.auto_direct, False, cython.NULL)
                except BaseException as error:
                    # A device refused to sync; the page went home all the same. The others follow.
                    if not pp_is_finalizing():
                        PyErr_SetObject(type(error), error)
                        PyErr_WriteUnraisable(pool)
            Py_DECREF(pool)
        free(self._ids)

    def _must_be_made(self):
        if self.home == cython.NULL:  # Lease.__new__(Lease)
            raise TypeError("a Lease comes from PagePool.lease(), it is not made")
        return 0

    def take(self, id):
        pool: Tiers = pool_of(self)
        at: cython.pointer[uint64_t]
        word: uint64_t
        if id >= pool.nr_pages:
            raise ForeignPageError(f"page {id} is not in the arena of {pool!r}")
        at = cython.address(pool.pages[id].word)
        while True:
            word = pp_load64(at)
            # Spent: the owner of the id has put it, and only views keep it lent.
            if pg_slot(word) != pool.slot or pg_state(word) != PG_LENT or word & PG_SPENT:
                raise ForeignPageError(f"page {id} is not lent by {pool!r}")
            if pg_refs(word) == PG_REF_MAX:
                raise BufferError(f"page {id} has too many references")
            if pp_cas64(at, word, word + (cython.cast(uint64_t, 1) << PG_REF_SHIFT)):
                break
        self._ids[self._n] = id
        self._n += 1
        return 0

    def measure(self):
        i: uint32_t
        step: int64_t = 0
        self.strided = True
        if self._n > 1:
            step = cython.cast(int64_t, self._ids[1]) - self._ids[0]
            for i in range(1, self._n):
                if cython.cast(int64_t, self._ids[i]) - self._ids[i - 1] != step:
                    self.strided = False
            if step == 0:
                self.strided = False
        self.shape[0] = self.length if self.flat else self._n
        self.shape[1] = 1 if self.flat else self.length
        self.strides[0] = 1 if self.flat else step * 4096 if self._n > 1 else self.length
        self.strides[1] = 1
        return 0

    def _at(self):
        first: uint64_t = self._ids[0] if self._n else 0
        return cython.cast(cython.p_char, pool_of(self).arena.base_vaddr + (first << 12) + self.offset)

    def _must_be_strided(self):
        self._must_be_made()
        if not self.strided:
            raise BufferError(
                f"these {self._n} pages do not lie at equal distances: they are no single tensor. Gather them, by "
                "their ids, from the rows of the pool's memory"
            )
        return 0

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        self._must_be_strided()
        whole: cython.bint = self.flat or self._n == 0 or self.strides[0] == self.length
        if not whole and (
            (flags & PyBUF_STRIDES) != PyBUF_STRIDES
            or (flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS
            or (flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS
        ):
            raise BufferError("the rows are not contiguous: each is in a page of its own")
        if self.flat or (flags & PyBUF_ND) != PyBUF_ND:
            PyBuffer_FillInfo(buffer, self, self._at(), self.shape[0] * self.shape[1], False, flags)
            return
        if (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS:
            raise BufferError("the rows are not in Fortran order")
        buffer.buf = self._at()
        buffer.obj = self
        buffer.len = self.shape[0] * self.shape[1]
        buffer.itemsize = 1
        buffer.readonly = False
        buffer.ndim = 2
        buffer.format = cython.NULL
        if flags & PyBUF_FORMAT:
            buffer.format = b"B"
        buffer.shape = self.shape
        buffer.strides = cython.NULL
        if (flags & PyBUF_STRIDES) == PyBUF_STRIDES:
            buffer.strides = self.strides
        buffer.suboffsets = cython.NULL
        buffer.internal = cython.NULL

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export as a DLPack capsule; the parameters and errors are those of `Page.__dlpack__`.

        Raises
        ------
        BufferError
            It is not `strided`, not even for a copy.
        """
        self._must_be_made()
        return export_capsule(self, pool_of(self).dlpack_device(), stream, max_version, dl_device, copy, False)

    def __dlpack_device__(self):
        """Return DLPack's type and number of the memory's device."""
        self._must_be_made()
        return pool_of(self).dlpack_device()

    @property
    def __array_interface__(self) -> dict:
        """NumPy's array interface, version 3. An array made of it keeps the lease, and so the pages."""
        self._must_be_strided()
        shape: tuple = (self.shape[0], self.shape[1])
        strides: tuple = (self.strides[0], self.strides[1])
        if self.flat:
            shape, strides = shape[:1], strides[:1]
        return {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "strides": strides,
            "data": (cython.cast(uint64_t, self._at()), False),
        }

    @property
    def pool(self):
        """The `PagePool` that the pages belong to."""
        self._must_be_made()
        return pool_of(self)

    @property
    def ids(self):
        """The pages, ``array('I')``, a new one."""
        found: c_array = clone(_NO_IDS, self._n, False)
        memcpy(found.data.as_uints, self._ids, cython.cast(cython.size_t, self._n) * 4)
        return found

    def __len__(self) -> int:
        return self._n

    def __reduce__(self):
        raise TypeError("a Lease is memory of this process and cannot be pickled")

    def __repr__(self) -> str:
        if self.home == cython.NULL:
            return "<Lease of nothing>"
        how = "at equal distances" if self.strided else "here and there"
        return f"<Lease of {self._n} pages of {self.pool!r}, {self.length} bytes of each, {how}>"


def new_lease(pool, ids, n, offset, length, flat):
    made: Lease = Lease.__new__(Lease)
    i: uint32_t
    made.home = cython.cast(cython.pointer[PyObject], pool)
    Py_INCREF(pool)
    made.offset = offset
    made.length = length
    made.flat = flat
    made._ids = cython.cast(cython.pointer[uint32_t], malloc((cython.cast(cython.size_t, n) + 1) * 4))
    if made._ids == cython.NULL:
        raise MemoryError(f"no memory for {n} references")
    for i in range(n):
        made.take(ids[i])  # where one fails, those taken so far go back with the object
    made.measure()
    return made

# SPDX-License-Identifier: MIT
"""Gather the same few bytes of many pages: a column of headers, in the order of the ids.

NumPy's ``flat[first::4096][ids]`` in a loop of its own, for two reasons that were measured. It costs a quarter of the
time, for an index of NumPy's is converted, checked and set up for every shape there is. And it keeps the GIL: NumPy
lets go of it in each such index, of however few frames, which wakes every thread that waits for it, in vain as a rule.

Invariant: every byte read lies in the arena, whatever the ids say.
"""

import cython
from cython.cimports.cpython.buffer import (
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.pagepool._core.atomic import pp_load32, pp_unlikely

if not cython.compiled:
    raise ImportError("pagepool.xdp._gather is compiled: run `make build`, or `pip install .`")


class PageWindow:
    """The bytes of an arena, to gather from.

    Parameters
    ----------
    flat : buffer of uint8, contiguous
        The arena; byte ``(page_id << 12) + k`` is byte ``k`` of the page. Kept as long as this object.
    """

    def __cinit__(self, flat):
        PyObject_GetBuffer(flat, cython.address(self.view), PyBUF_SIMPLE)
        self.has_view = True

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(cython.address(self.view))

    def gather(self, ids, first: uint64_t, out) -> None:
        """Copy ``len(out) // len(ids)`` bytes of each page.

        Parameters
        ----------
        ids : contiguous buffer of uint32, (n,)
            Pages that the caller holds.
        first : int
            Bytes from a page's first byte to the first to copy.
        out : contiguous writable buffer
            Where to; its length is a multiple of n.

        Raises
        ------
        IndexError
            An id, or what is to be copied of it, is outside of the arena; `out` has what came before it.
        TypeError, ValueError
            `ids` are not of 4 bytes each; `out` is not a whole number of bytes for each of them.

        Notes
        -----
        Context: whoever holds the pages. From 2048 frames on, other threads run meanwhile (no GIL).
        """
        a: Py_buffer
        b: Py_buffer
        n: uint64_t
        done: uint64_t
        width: uint64_t
        limit: uint64_t = 0
        size: uint64_t = self.view.len
        at: cython.pointer[uint32_t]
        base: cython.pointer[uint8_t]
        to: cython.pointer[uint8_t]
        PyObject_GetBuffer(ids, cython.address(a), PyBUF_ND)
        try:
            if a.itemsize != 4 or a.ndim != 1:
                raise TypeError(f"ids must be one row of uint32, not {a.ndim} dimensions of {a.itemsize}-byte items")
            n = cython.cast(uint64_t, a.len // 4)
            at = cython.cast(cython.pointer[uint32_t], a.buf)
            PyObject_GetBuffer(out, cython.address(b), PyBUF_WRITABLE)
            try:
                if n == 0:
                    return
                width = cython.cast(uint64_t, b.len) // n
                if width * n != cython.cast(uint64_t, b.len):
                    raise ValueError(f"{b.len} bytes are not the same number for each of {n} frames")
                # Pages below the limit hold what is asked for, all of it.
                if first <= size and width <= size - first:
                    limit = ((size - first - width) >> PAGE_SHIFT) + 1
                base = cython.cast(cython.pointer[uint8_t], self.view.buf) + first
                to = cython.cast(cython.pointer[uint8_t], b.buf)
                if n >= NOGIL_FRAMES:
                    with cython.nogil:
                        done = copy_out(base, limit, at, n, width, to)
                else:
                    done = copy_out(base, limit, at, n, width, to)
                if done < n:
                    raise IndexError(
                        f"page {at[done]}: {width} bytes at {first} of it are not in the {size >> PAGE_SHIFT} pages"
                    )
            finally:
                PyBuffer_Release(cython.address(b))
        finally:
            PyBuffer_Release(cython.address(a))

    def __reduce__(self):
        raise TypeError("a PageWindow is memory of this process and cannot be pickled")


def copy_out(base, limit, ids, n, width, out):
    # Returns how many were copied: it ends at the first id that is not below `limit`. Each id is read once, so that
    # nobody who writes to the array meanwhile gets past the look. Widths that a header field has are told
    # apart, for copies of a length known beforehand are single instructions.
    i: uint64_t = 0
    id: uint64_t
    while i < n:
        id = pp_load32(ids + i)
        if pp_unlikely(id >= limit):
            break
        if width == 1:
            out[i] = base[id << PAGE_SHIFT]
        elif width == 2:
            memcpy(out + 2 * i, base + (id << PAGE_SHIFT), 2)
        elif width == 4:
            memcpy(out + 4 * i, base + (id << PAGE_SHIFT), 4)
        else:
            memcpy(out + width * i, base + (id << PAGE_SHIFT), width)
        i += 1
    return i

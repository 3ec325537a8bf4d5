# SPDX-License-Identifier: MIT
"""What the kernel lets a consumer do with the arena, and what there is to be seen in it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

import numpy as np
import pytest
from shared_doubles import (
    Stranger,
    eventually,
)

import pagepool as pp
from pagepool.errors import PagePoolError
from pagepool.shared import SharedPool

PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def test_a_reader_cannot_map_the_arena_for_writing() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with SharedPool(pages=512) as shared, Stranger(shared) as stranger:
        fd, size = stranger.arena_fd, stranger.welcome.arena_bytes
        with pytest.raises(PermissionError):
            mmap.mmap(fd, size, prot=PROT_READ_WRITE)
        # Not by changing the mapping ...
        readable = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        vaddr = np.frombuffer(readable, np.uint8).ctypes.data
        assert libc.mprotect(vaddr, 4096, PROT_READ_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES
        # ... nor by opening the file anew, which root and the owner may: the seal holds for them too.
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, size, prot=PROT_READ_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(again, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 0)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 2 * size)
            with pytest.raises(PermissionError):
                fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            punch = libc.fallocate
            punch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            assert punch(again, 0x03, 0, 4096) == -1  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            assert ctypes.get_errno() == errno.EPERM
        finally:
            os.close(again)
        private = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=PROT_READ_WRITE)
        private[0:5] = b"alone"  # a copy of its own is its own
        assert bytes(shared.allocator.view()[:5]) == bytes(5)
        private.close()


def test_a_reader_beside_a_writer_has_a_descriptor_for_reading() -> None:
    with SharedPool(pages=512, writable=True) as shared, Stranger(shared) as stranger:
        with pytest.raises(PermissionError):
            mmap.mmap(stranger.arena_fd, stranger.welcome.arena_bytes, prot=PROT_READ_WRITE)
        with pytest.raises(OSError, match="descriptor"):
            os.write(stranger.arena_fd, b"x")


def test_a_writer_can_neither_cut_nor_seal_the_arena() -> None:
    with SharedPool(pages=512, writable=True) as shared, Stranger(shared, writable=True) as stranger:
        for size in (0, 4096, 64 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(stranger.arena_fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(stranger.arena_fd, fcntl.F_ADD_SEALS, 0x10)
        with pytest.raises(PermissionError):
            os.ftruncate(stranger.rings_fd, 0)


def test_nothing_of_another_pool_can_be_read() -> None:
    """The whole mapping, lent pages or not, is zeros and what this pool's user wrote."""
    secret = b"a secret of another pool" * 100
    with pp.PagePool() as other:
        keep = [other.alloc_pages() for _ in range(100)]
        for page in keep:
            page[: len(secret)] = secret
        with SharedPool(pages=1024) as shared, Stranger(shared) as stranger:
            assert not np.frombuffer(stranger.arena, np.uint8).any()  # all of it, before anything was lent
            page = shared.pool.alloc_pages()
            page[:4] = b"mine"
            shared.send(page, 4)
            assert stranger.arena[:].strip(b"\0") == b"mine"
            stranger.give(page.id)
            eventually(lambda: shared.pool.lent == 0)
        del page
        for page in keep:
            page.put()


def test_no_other_pool_can_come_to_a_shared_arena() -> None:
    allocator = pp.PageAllocator(2 << 20, "memfd", commit=True)
    with pp.PagePool(memory=allocator, zero=True) as pool:
        with pp.PagePool(memory=allocator, zero=True) as second, pytest.raises(ValueError, match="2 pools"):
            SharedPool(pool)
        assert second.closed
        del second
        with pytest.raises(ValueError, match="2 pools"):
            SharedPool(pool)  # its data may still lie there
    clean = pp.PageAllocator(2 << 20, "memfd", commit=True)
    pool = pp.PagePool(memory=clean, zero=True)
    with pool, SharedPool(pool), pytest.raises(PagePoolError, match="shared with other processes"):
        pp.PagePool(memory=clean)


def test_a_page_that_left_the_pool_comes_back_as_zeros_one_that_circulates_does_not() -> None:
    with SharedPool(pages=512) as shared, Stranger(shared) as stranger:
        pool = shared.pool
        ids = np.array(pool.alloc_bulk(512), np.uint32)  # all of the arena
        rows = np.frombuffer(shared.allocator.view(), np.uint8).reshape(-1, 4096)
        rows[:, :6] = np.frombuffer(b"before", np.uint8)
        assert pool.put_bulk(ids) == 512
        page = pool.alloc_pages()
        assert bytes(page[:6]) == b"before"  # recycled: not cleared
        released = page.id
        pool.release_page(page)
        del page
        again = np.array(pool.alloc_bulk(512), np.uint32)
        assert released in again
        assert stranger.arena[released << 12 : (released + 1) << 12] == bytes(4096)
        others = [page_id for page_id in again.tolist() if page_id != released]
        assert stranger.arena[others[0] << 12 : (others[0] << 12) + 6] == b"before"
        pool.put_bulk(again)


def test_a_shared_arena_neither_shrinks_nor_grows() -> None:
    allocator = pp.PageAllocator(4 << 20, "memfd", commit=True)
    with pp.PagePool(memory=allocator, zero=True) as pool, SharedPool(pool) as shared, Stranger(shared) as stranger:
        assert allocator.shrink() == 0
        ids = pool.alloc_bulk(2000)
        assert len(ids) == 1024  # and then there is no more
        pool.put_bulk(ids)
        assert os.fstat(stranger.arena_fd).st_size == 4 << 20
        shared.check()
    small = pp.PageAllocator(2 << 20, "memfd", commit=True)
    with pp.PagePool(memory=small, zero=True) as pool, SharedPool(pool) as shared, Stranger(shared) as stranger:
        page = pool.alloc_pages()
        page[:5] = b"still"
        at = page.id << 12
        page.put()
        shared.close()
        pool.close()
        assert pool.memory.close()  # gives its memory back, as far as it is its own
        assert stranger.arena[at : at + 5] == b"still"  # what is mapped stays good until it is let go

# SPDX-License-Identifier: MIT
"""A page allocator across fork(2): private memory parts, shared memory stays the parent's."""

from __future__ import annotations

import ctypes
import os
import threading
import traceback
import warnings
from collections.abc import Callable

import pytest

from pagepool._core.params import SLAB_SIZE
from pagepool.memory import PageAllocator, default_allocator


def in_child(check: Callable[[], None]) -> int:
    """Run `check` in a forked child; return its exit status, 0 if nothing was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking with threads, which is the point
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        check()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def test_private_memory_is_a_copy_that_grows_by_itself() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE)
    vaddr = allocator.base_vaddr + (allocator.arena.alloc_block(0) << 12)
    ctypes.memset(vaddr, 1, 4096)

    def check() -> None:
        assert ctypes.string_at(vaddr, 1) == b"\1"
        ctypes.memset(vaddr, 2, 4096)
        assert allocator.grow()
        assert allocator.shrink() == SLAB_SIZE

    assert in_child(check) == 0
    assert ctypes.string_at(vaddr, 1) == b"\1"
    assert allocator.committed_bytes == SLAB_SIZE


def test_shared_memory_is_the_parents_to_grow_and_to_punch() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE, "memfd")
    vaddr = allocator.base_vaddr
    ctypes.memset(vaddr, 1, 4096)

    def check() -> None:
        assert not allocator.grow()
        assert allocator.shrink() == 0
        assert not allocator.close()
        assert ctypes.string_at(vaddr, 1) == b"\1"
        ctypes.memset(vaddr, 2, 1)

    assert in_child(check) == 0
    assert ctypes.string_at(vaddr, 2) == b"\2\1"
    assert allocator.grow()


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_a_child_has_defaults_of_its_own(kind: str) -> None:
    parents = default_allocator(kind)

    def check() -> None:
        assert default_allocator(kind) is not parents
        assert default_allocator(kind).grow()

    assert in_child(check) == 0
    assert default_allocator(kind) is parents


def test_a_lock_that_another_thread_holds_does_not_hang_the_child() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with allocator._lock:
            held.set()
            done.wait()

    def check() -> None:
        assert allocator._lock.acquire(timeout=5)
        allocator._lock.release()
        assert allocator.grow()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_child(check) == 0
    finally:
        done.set()
        thread.join()

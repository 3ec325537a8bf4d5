# SPDX-License-Identifier: MIT
"""The page allocator over every ordinary kind: growing, shrinking, closing, and what it says of itself."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest

from pagepool._core.params import NUMA_NO_NODE, SLAB_SIZE
from pagepool.memory import MemoryKind, MemoryKindError, PageAllocator, default_allocator
from pagepool.memory.allocator_stats import describe_kinds, describe_nodes
from pagepool.memory.slabs import SlabSource

ORDINARY = [MemoryKind.ANONYMOUS, MemoryKind.THP, MemoryKind.MEMFD]
SLAB_ORDER = 9


@pytest.fixture(params=ORDINARY)
def kind(request: pytest.FixtureRequest) -> MemoryKind:
    kind: MemoryKind = request.param
    return kind


@pytest.fixture
def allocator(kind: MemoryKind) -> Iterator[PageAllocator]:
    with PageAllocator(8 * SLAB_SIZE, kind) as allocator:
        yield allocator


def vaddr_of(allocator: PageAllocator, page_id: int) -> int:
    return allocator.base_vaddr + (page_id << 12)


def take_slabs(allocator: PageAllocator, count: int) -> list[int]:
    return [allocator.arena.alloc_block(SLAB_ORDER) for _ in range(count)]


# -- what there is from the start ----------------------------------------------------------------------------


def test_begins_with_one_slab(allocator: PageAllocator, kind: MemoryKind) -> None:
    stats = allocator.stats()
    assert stats.reserved_bytes == stats.limit_bytes == allocator.size_bytes == 8 * SLAB_SIZE
    assert stats.committed_bytes == stats.free_bytes == allocator.committed_bytes == SLAB_SIZE
    assert (stats.slabs, stats.slabs_grown, stats.slabs_given_back, stats.used_bytes) == (1, 1, 0, 0)
    assert allocator.got.total() == allocator.nids.total() == 1
    assert (allocator.fd is not None) == kind.is_shared
    assert allocator.arena.base_vaddr == allocator.base_vaddr


def test_a_kind_may_be_its_name() -> None:
    assert PageAllocator(SLAB_SIZE, "memfd").kind is MemoryKind.MEMFD
    with pytest.raises(ValueError, match="floppy"):
        PageAllocator(SLAB_SIZE, "floppy")


def test_the_default_size_is_64_gib_of_addresses() -> None:
    assert PageAllocator().size_bytes == 64 << 30


@pytest.mark.parametrize(
    "arguments",
    [
        {"size_bytes": 0},
        {"size_bytes": -1},
        {"size_bytes": (8 << 40) + 1},
        {"commit": True},
        {"size_bytes": SLAB_SIZE, "limit_bytes": SLAB_SIZE - 1},
        {"size_bytes": 2 * SLAB_SIZE, "limit_bytes": SLAB_SIZE, "commit": True},
        {"size_bytes": SLAB_SIZE, "reserve_pages": -1},
    ],
)
def test_senseless_arguments_are_value_errors(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"size_bytes|limit_bytes|reserve_pages"):
        PageAllocator(**arguments)  # type: ignore[arg-type]


# -- growing -------------------------------------------------------------------------------------------------


def test_grows_when_pages_run_out(allocator: PageAllocator) -> None:
    ids = take_slabs(allocator, 3)
    assert sorted(ids) == [0, 512, 1024]
    assert allocator.committed_bytes == 3 * SLAB_SIZE
    assert allocator.stats().used_bytes == 3 * SLAB_SIZE


def test_ends_with_the_reservation(allocator: PageAllocator) -> None:
    take_slabs(allocator, 8)
    with pytest.raises(MemoryError):
        allocator.arena.alloc_block(0)
    assert allocator.stats().grow_failures == 1


def test_ends_at_the_limit(kind: MemoryKind) -> None:
    allocator = PageAllocator(8 * SLAB_SIZE, kind, limit_bytes=2 * SLAB_SIZE + 4096)
    ids = take_slabs(allocator, 2)
    assert not allocator.grow()
    assert allocator.stats().limit_bytes == allocator.committed_bytes == 2 * SLAB_SIZE
    allocator.arena.free_id(ids[1])
    assert allocator.shrink() == SLAB_SIZE
    assert allocator.grow()


def test_a_system_without_memory_is_no_crash(allocator: PageAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SlabSource, index: int, nid: int = NUMA_NO_NODE) -> None:
        raise MemoryKindError(errno.ENOMEM, MemoryKind.ANONYMOUS)

    take_slabs(allocator, 1)
    with monkeypatch.context() as patch:
        patch.setattr(SlabSource, "commit", refuse)
        with pytest.raises(MemoryError):
            allocator.arena.alloc_block(0)
    assert isinstance(allocator.last_error, MemoryKindError)
    assert allocator.arena.alloc_block(0) == 512  # the hole that was refused is the next to be filled


def test_commit_takes_everything_once(kind: MemoryKind) -> None:
    allocator = PageAllocator(3 * SLAB_SIZE, kind, commit=True)
    assert allocator.committed_bytes == allocator.size_bytes == len(allocator.view())
    assert not allocator.grow()
    assert allocator.shrink() == 0
    assert allocator.close()


def test_a_reserve_is_passed_to_the_arena() -> None:
    assert PageAllocator(SLAB_SIZE, reserve_pages=32).arena.reserve_pages == 32


def test_threads_grow_at_once(kind: MemoryKind) -> None:
    allocator = PageAllocator(32 * SLAB_SIZE, kind, limit_bytes=24 * SLAB_SIZE)
    ids: list[int] = []
    start = threading.Barrier(4)

    def take_all() -> None:
        start.wait()
        try:
            while True:
                ids.append(allocator.arena.alloc_block(8))
        except MemoryError:
            pass

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == list(range(0, 24 * 512, 256))
    assert allocator.committed_bytes == 24 * SLAB_SIZE
    allocator.arena.check()


def test_who_waited_for_another_thread_to_grow_does_not_grow_again(allocator: PageAllocator) -> None:
    lock = allocator._lock

    class OtherThreadIsFaster:
        def __enter__(self) -> None:
            lock.acquire()
            allocator._commit_next(NUMA_NO_NODE)

        def __exit__(self, *error: object) -> None:
            lock.release()

    allocator._lock = OtherThreadIsFaster()  # type: ignore[assignment]
    assert allocator.grow()
    allocator._lock = lock
    assert allocator.stats().slabs_grown == 2


# -- shrinking -----------------------------------------------------------------------------------------------


def test_shrink_gives_back_what_is_wholly_free(allocator: PageAllocator) -> None:
    first, _, third = take_slabs(allocator, 3)
    small = allocator.arena.alloc_block(0)
    allocator.arena.free_id(first)
    allocator.arena.free_id(third)
    assert allocator.shrink() == 2 * SLAB_SIZE
    assert allocator.shrink() == 0
    assert allocator.committed_bytes == 2 * SLAB_SIZE
    assert allocator.stats().slabs_given_back == 2
    assert allocator.arena.alloc_block(SLAB_ORDER) == first  # the lowest hole comes first
    ctypes.memset(vaddr_of(allocator, small), 1, 4096)
    allocator.arena.check()


def test_shrink_keeps_what_it_is_told_to(allocator: PageAllocator) -> None:
    for page_id in take_slabs(allocator, 4):
        allocator.arena.free_id(page_id)
    assert allocator.shrink(keep_bytes=SLAB_SIZE + 1) == 2 * SLAB_SIZE
    assert allocator.shrink(keep_bytes=SLAB_SIZE) == SLAB_SIZE
    assert allocator.shrink(keep_bytes=0) == SLAB_SIZE


def test_pages_are_zeroed_again_after_shrink(allocator: PageAllocator) -> None:
    (page_id,) = take_slabs(allocator, 1)
    ctypes.memset(vaddr_of(allocator, page_id), 0xFF, SLAB_SIZE)
    allocator.arena.free_id(page_id)
    assert allocator.shrink() == SLAB_SIZE
    (page_id,) = take_slabs(allocator, 1)
    assert ctypes.string_at(vaddr_of(allocator, page_id), SLAB_SIZE).count(0) == SLAB_SIZE


def test_a_slab_under_a_view_stays(allocator: PageAllocator) -> None:
    ids = take_slabs(allocator, 2)
    view = allocator.view()
    ids += take_slabs(allocator, 1)
    for page_id in ids:
        allocator.arena.free_id(page_id)
    assert allocator.shrink() == SLAB_SIZE  # only the one that came after the view
    view[2 * SLAB_SIZE - 1] = 1
    sliced = view[5:6]
    del view
    assert allocator.shrink() == 0
    del sliced
    assert allocator.shrink() == 2 * SLAB_SIZE
    assert len(allocator.view()) == 0


def test_a_slab_that_will_not_be_unmapped_stays(allocator: PageAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    class StubbornArena:
        def __init__(self, arena: object) -> None:
            self._arena = arena

        def __getattr__(self, name: str) -> object:
            return getattr(self._arena, name)

        def remove_slab(self, index: int) -> bool:
            raise OSError(errno.EBUSY, "the device holds it")

    with monkeypatch.context() as patch:
        patch.setattr(allocator, "arena", StubbornArena(allocator.arena))
        assert allocator.shrink() == 0
    assert allocator.last_error is not None
    assert allocator.last_error.errno == errno.EBUSY
    assert allocator.shrink() == SLAB_SIZE


def test_a_slab_that_cannot_be_decommitted_stays(allocator: PageAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SlabSource, index: int, slab: object) -> None:
        raise OSError(errno.ENOMEM, "vm.max_map_count")

    with monkeypatch.context() as patch:
        patch.setattr(SlabSource, "decommit", refuse)
        assert allocator.shrink() == 0
    assert allocator.arena.alloc_block(SLAB_ORDER) == 0
    allocator.arena.check()


# -- closing -------------------------------------------------------------------------------------------------


def test_close_gives_everything_back(allocator: PageAllocator) -> None:
    take = take_slabs(allocator, 2)
    for page_id in take:
        allocator.arena.free_id(page_id)
    assert allocator.close()
    assert allocator.closed
    assert allocator.fd is None
    assert allocator.committed_bytes == 0
    assert not allocator.grow()
    assert allocator.describe() == "no memory"
    assert allocator.close()
    with pytest.raises(MemoryError):
        allocator.arena.alloc_block(0)


def test_pages_outlive_close(allocator: PageAllocator) -> None:
    page_id = allocator.arena.alloc_block(0)
    assert not allocator.close()
    ctypes.memset(vaddr_of(allocator, page_id), 1, 4096)
    allocator.arena.free_id(page_id)
    assert allocator.close()


def test_memory_lives_as_long_as_the_arena(kind: MemoryKind) -> None:
    allocator = PageAllocator(2 * SLAB_SIZE, kind)
    arena, base_vaddr = allocator.arena, allocator.base_vaddr
    alive = weakref.ref(allocator._reservation._range)
    page_id = arena.alloc_block(0)
    del allocator
    gc.collect()
    assert alive() is not None
    ctypes.memset(base_vaddr + (page_id << 12), 1, 4096)
    with pytest.raises(MemoryError):  # nobody is there to grow it
        arena.alloc_block(SLAB_ORDER)
    del arena
    gc.collect()
    assert alive() is None


def test_memory_lives_as_long_as_a_view(kind: MemoryKind) -> None:
    allocator = PageAllocator(2 * SLAB_SIZE, kind)
    alive = weakref.ref(allocator._reservation._range)
    view = allocator.view()
    assert not allocator.close()
    del allocator
    gc.collect()
    view[0] = 1
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_goes_without_the_cycle_collector(kind: MemoryKind) -> None:
    gc.disable()
    try:
        alive = weakref.ref(PageAllocator(SLAB_SIZE, kind)._reservation._range)
        assert alive() is None
    finally:
        gc.enable()


LOOKS_AT_ITS_END = """
import gc
from pagepool.memory import PageAllocator

class Late:
    def __del__(self):
        print(bytes(self.view[:4]).decode())

late = Late()
late.memory = PageAllocator(4 << 20, commit=True)
late.view = late.memory.view()
late.view[:4] = b"here"
late.me = late
del late
gc.collect()
"""


def test_memory_in_a_cycle_goes_after_every_finalizer() -> None:
    """The collector calls finalizers before it tears anything down, in an order of its own: each may still look."""
    run = subprocess.run([sys.executable, "-c", LOOKS_AT_ITS_END], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout) == (0, "here\n"), run.stderr


# -- what it says --------------------------------------------------------------------------------------------


def test_another_process_maps_the_same_pages() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE, "memfd")
    page_id = take_slabs(allocator, 2)[1]
    assert allocator.fd is not None
    with mmap.mmap(os.dup(allocator.fd), SLAB_SIZE, offset=page_id << 12) as other:
        other[:5] = b"hello"
    assert ctypes.string_at(vaddr_of(allocator, page_id), 5) == b"hello"


@pytest.mark.parametrize(
    ("asked", "got", "text"),
    [
        ("anonymous", {}, "no memory"),
        ("anonymous", {"anonymous": 3}, "4 KiB pages"),
        ("hugetlb", {"hugetlb": 4}, "2 MiB huge pages"),
        ("hugetlb", {"hugetlb": 3, "anonymous": 1}, "2 MiB huge pages (3 of 4 slabs), rest 4 KiB pages"),
        ("hugetlb", {"anonymous": 4}, "4 KiB pages"),
        ("thp", {"thp": 1, "anonymous": 1}, "transparent 2 MiB huge pages (1 of 2 slabs), rest 4 KiB pages"),
        (
            "hugetlb",
            {"hugetlb": 2, "thp": 1, "anonymous": 3},
            "2 MiB huge pages (2 of 6 slabs), rest transparent 2 MiB huge pages (1) and 4 KiB pages (3)",
        ),
    ],
)
def test_says_what_it_got(asked: str, got: dict[str, int], text: str) -> None:
    assert describe_kinds(MemoryKind(asked), Counter({MemoryKind(k): n for k, n in got.items()})) == text


def test_says_where_it_is() -> None:
    assert describe_nodes(Counter({1: 1, 0: 3})) == "node 0: 3 slabs, node 1: 1 slab"


def test_repr_is_short(allocator: PageAllocator) -> None:
    assert repr(allocator) == f"<PageAllocator {allocator.kind}: 2 of 16 MiB>"
    allocator.close()
    assert repr(allocator) == f"<PageAllocator {allocator.kind}: closed>"


# -- the process-wide ones -----------------------------------------------------------------------------------


def test_one_default_for_each_kind() -> None:
    assert default_allocator() is default_allocator("anonymous") is default_allocator(MemoryKind.ANONYMOUS)
    assert default_allocator("memfd") is not default_allocator()


def test_a_closed_default_is_replaced() -> None:
    closed = default_allocator("memfd")
    closed.close()
    assert default_allocator("memfd") is not closed


def test_threads_get_the_same_default() -> None:
    default_allocator("thp").close()
    start = threading.Barrier(4)
    got: list[PageAllocator] = []

    def ask() -> None:
        start.wait()
        got.append(default_allocator("thp"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert len(set(map(id, got))) == 1


def test_what_could_not_be_committed_whole_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    refused: Exception | None = None
    try:
        PageAllocator(1 << 40, MemoryKind.MEMFD_HUGETLB, commit=True, fallback=False)
    except MemoryKindError as error:
        refused = error  # with its traceback, which refers to the allocator
    assert refused is not None
    assert set(os.listdir("/proc/self/fd")) == before

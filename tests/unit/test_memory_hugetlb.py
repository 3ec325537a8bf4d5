# SPDX-License-Identifier: MIT
"""Memory out of the administrator's pool of huge pages: used, given back, and replaced truthfully."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pagepool._core.params import SLAB_SIZE
from pagepool.memory import MemoryKind, MemoryKindError, PageAllocator, huge_pages

NR_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGETLB = [MemoryKind.HUGETLB, MemoryKind.MEMFD_HUGETLB]
SLAB_ORDER = 9


@pytest.fixture
def three_huge_pages() -> Iterator[int]:
    """Set huge pages aside until exactly three are free; put the old number back afterwards."""
    before = int(NR_HUGEPAGES.read_text())
    NR_HUGEPAGES.write_text(str(before + 3 - huge_pages.nr_free_hugepages()))
    try:
        assert huge_pages.nr_free_hugepages() == 3, "the kernel found no room for three huge pages"
        yield 3
    finally:
        gc.collect()
        NR_HUGEPAGES.write_text(str(before))


def kernel_page_kib(vaddr: int) -> int:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            first, _, end = name.partition("-")
            inside = int(first, 16) <= vaddr < int(end, 16)
        elif inside and name == "KernelPageSize:":
            return int(rest.split()[0])
    raise AssertionError(f"nothing is mapped at vaddr {vaddr:#x}")


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
@pytest.mark.parametrize("kind", HUGETLB)
def test_slabs_are_huge_pages_and_come_back(kind: MemoryKind, three_huge_pages: int) -> None:
    allocator = PageAllocator(3 * SLAB_SIZE, kind, commit=True, fallback=False)
    assert allocator.got == {kind: 3}
    assert allocator.describe() == kind.words
    assert kernel_page_kib(allocator.base_vaddr) == 2048
    assert huge_pages.nr_free_hugepages() == 0
    view = allocator.view()
    assert not any(view[::4096])
    view[-1] = 1
    del view
    assert allocator.close()
    assert huge_pages.nr_free_hugepages() == 3


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
@pytest.mark.parametrize("kind", HUGETLB)
def test_shrink_frees_huge_pages(kind: MemoryKind, three_huge_pages: int) -> None:
    allocator = PageAllocator(3 * SLAB_SIZE, kind, fallback=False)
    ids = [allocator.arena.alloc_block(SLAB_ORDER) for _ in range(3)]
    allocator.arena.free_id(ids[1])
    assert allocator.shrink() == SLAB_SIZE
    assert huge_pages.nr_free_hugepages() == 1
    assert allocator.arena.alloc_block(SLAB_ORDER) == ids[1]
    assert huge_pages.nr_free_hugepages() == 0


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
def test_the_fourth_slab_is_something_else_and_says_so(three_huge_pages: int) -> None:
    allocator = PageAllocator(4 * SLAB_SIZE, "hugetlb", commit=True)
    assert allocator.got[MemoryKind.HUGETLB] == 3
    assert allocator.got.total() == 4
    assert allocator.describe().startswith("2 MiB huge pages (3 of 4 slabs), rest ")
    assert kernel_page_kib(allocator.base_vaddr + 3 * SLAB_SIZE) == 4


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
def test_a_memory_file_that_is_committed_is_huge_as_a_whole_or_not_at_all(three_huge_pages: int) -> None:
    with closing(PageAllocator(3 * SLAB_SIZE, "memfd_hugetlb", commit=True)) as fits:
        assert fits.got == {MemoryKind.MEMFD_HUGETLB: 3}
    with closing(PageAllocator(4 * SLAB_SIZE, "memfd_hugetlb", commit=True)) as larger:
        assert larger.got == {MemoryKind.MEMFD: 4}
        assert huge_pages.nr_free_hugepages() == 3
        assert larger.fd is not None
        assert os.fstat(larger.fd).st_size == 4 * SLAB_SIZE


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
def test_a_memory_file_of_huge_pages_ends_where_they_end(three_huge_pages: int) -> None:
    allocator = PageAllocator(8 * SLAB_SIZE, "memfd_hugetlb")
    while allocator.grow():
        pass
    assert allocator.got == {MemoryKind.MEMFD_HUGETLB: 3}
    assert "vm.nr_hugepages" in str(allocator.last_error)
    assert allocator.fd is not None
    assert os.fstat(allocator.fd).st_size == 3 * SLAB_SIZE


@pytest.mark.needs_root
@pytest.mark.needs_hugetlb
@pytest.mark.parametrize("kind", HUGETLB)
def test_without_fallback_the_knob_is_named(kind: MemoryKind, three_huge_pages: int) -> None:
    with pytest.raises(MemoryKindError, match=r"vm\.nr_hugepages"):
        PageAllocator(4 * SLAB_SIZE, kind, commit=True, fallback=False)
    gc.collect()
    assert huge_pages.nr_free_hugepages() == 3


@pytest.mark.parametrize("kind", HUGETLB)
def test_what_is_not_there_is_never_claimed(kind: MemoryKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_free(*args: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("pagepool.memory.slabs.map_hugetlb", none_free)
    monkeypatch.setitem(
        __import__("pagepool.memory.slabs", fromlist=["x"])._PRIVATE_PROVIDERS, MemoryKind.HUGETLB, none_free
    )
    monkeypatch.setattr("os.MFD_HUGETLB", 1 << 31)
    allocator = PageAllocator(2 * SLAB_SIZE, kind)
    assert allocator.got.total() == 1
    assert allocator.got[kind] == 0
    assert (allocator.fd is not None) == kind.is_shared
    with pytest.raises(MemoryKindError):
        PageAllocator(2 * SLAB_SIZE, kind, fallback=False)


def test_figures_of_a_machine_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_HUGETLB_2MB", "hugepages/none")
    assert not huge_pages.has_hugetlb()
    assert huge_pages.nr_hugepages() == huge_pages.nr_free_hugepages() == huge_pages.nr_free_hugepages(0) == 0
    assert "CONFIG_HUGETLBFS" in str(MemoryKindError(12, MemoryKind.HUGETLB))

# SPDX-License-Identifier: MIT
"""Slabs of every kind: mapped, populated, zeroed, placed, taken out, and truthfully named."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from pagepool._core.params import NUMA_NO_NODE, SLAB_SIZE
from pagepool.memory import MemoryKind, MemoryKindError, _libc, huge_pages, numa
from pagepool.memory.memfd import MemoryFile
from pagepool.memory.reservation import Reservation
from pagepool.memory.slabs import Slab, SlabSource, populate

ORDINARY = [MemoryKind.ANONYMOUS, MemoryKind.THP, MemoryKind.MEMFD]


def source_of(kind: MemoryKind, *, fallback: bool = True, prefault: bool = True) -> SlabSource:
    return SlabSource(Reservation(4 * SLAB_SIZE), kind, fallback=fallback, prefault=prefault)


def resident_pages(source: SlabSource, index: int) -> int:
    where = numa.nodes_of(source.reservation.slab_vaddr(index), SLAB_SIZE)
    return sum(pages for nid, pages in where.items() if nid != NUMA_NO_NODE)


def content(source: SlabSource, index: int) -> memoryview:
    window = (ctypes.c_ubyte * SLAB_SIZE).from_address(source.reservation.slab_vaddr(index))
    return memoryview(window).cast("B")


@pytest.fixture(params=ORDINARY)
def source(request: pytest.FixtureRequest) -> SlabSource:
    return source_of(request.param)


def test_a_slab_is_there_zeroed_and_writable(source: SlabSource) -> None:
    source.commit(2)
    assert resident_pages(source, 2) == 512
    view = content(source, 2)
    assert not any(view[::4096])
    view[0] = view[-1] = 7
    assert (view[0], view[-1]) == (7, 7)


def test_a_slab_that_comes_back_is_zeroed(source: SlabSource) -> None:
    slab = source.commit(1)
    content(source, 1)[100] = 9
    source.decommit(1, slab)
    assert resident_pages(source, 1) == 0
    source.commit(1)
    assert content(source, 1)[100] == 0


@pytest.mark.parametrize("kind", ORDINARY)
def test_without_prefault_pages_come_at_first_touch(kind: MemoryKind) -> None:
    source = source_of(kind, prefault=False)
    source.commit(0)
    assert resident_pages(source, 0) == 0
    content(source, 0)[0] = 1
    assert resident_pages(source, 0) > 0


def test_an_old_kernel_is_populated_by_read(monkeypatch: pytest.MonkeyPatch) -> None:
    madvise = _libc.madvise

    def old_madvise(vaddr: int, size_bytes: int, advice: int) -> None:
        if advice == _libc.MADV_POPULATE_WRITE:
            raise OSError(errno.EINVAL, "Invalid argument")
        madvise(vaddr, size_bytes, advice)

    monkeypatch.setattr(_libc, "madvise", old_madvise)
    source = source_of(MemoryKind.ANONYMOUS)
    source.commit(0)
    assert resident_pages(source, 0) == 512


def test_populating_a_hole_is_an_error_not_a_signal() -> None:
    with pytest.raises(OSError, match=r"Bad address|madvise") as refused:
        populate(Reservation(SLAB_SIZE).base_vaddr, SLAB_SIZE)
    assert refused.value.errno in (errno.ENOMEM, errno.EFAULT)


@pytest.mark.parametrize("kind", ORDINARY)
def test_a_refused_slab_leaves_the_hole(kind: MemoryKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(vaddr: int, size_bytes: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("pagepool.memory.slabs.populate", no_memory)
    source = source_of(kind)
    with pytest.raises(MemoryKindError) as refused:
        source.commit(0)
    assert refused.value.errno == errno.ENOMEM
    assert refused.value.kind is kind
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"Bad address|madvise"):  # still a hole
        populate(source.reservation.base_vaddr, SLAB_SIZE)
    assert source.commit(0).nid in numa.nodes()


@pytest.mark.parametrize("kind", list(MemoryKind))
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EFAULT, errno.EAGAIN, errno.ENOSPC])
def test_a_refusal_names_a_knob(kind: MemoryKind, number: int) -> None:
    text = str(MemoryKindError(number, kind))
    assert text.startswith(f"commit {kind} a slab of 2 MiB: {errno.errorcode[number]}; ")
    assert any(knob in text for knob in ("vm.", "ulimit", "/sys/kernel/mm", "CONFIG_HUGETLBFS", "cgroup"))


THP_DISABLED = """
import ctypes
PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
from pagepool.memory import MemoryKind, MemoryKindError, PageAllocator
allocator = PageAllocator(8 << 20, "thp")
assert allocator.got == {MemoryKind.ANONYMOUS: 1}, allocator.got
assert allocator.describe() == "4 KiB pages", allocator.describe()
try:
    PageAllocator(8 << 20, "thp", fallback=False)
except MemoryKindError as error:
    assert error.kind is MemoryKind.THP and "2 MiB" in str(error), error
else:
    raise AssertionError("a huge page in a process that may have none")
"""


def test_no_huge_page_is_claimed_that_the_kernel_did_not_give() -> None:
    subprocess.run([sys.executable, "-c", THP_DISABLED], check=True, timeout=30)


def test_anonymous_is_not_called_huge_unless_it_is() -> None:
    source = source_of(MemoryKind.ANONYMOUS)
    assert source.commit(0) == Slab(MemoryKind.ANONYMOUS, source.commit(1).nid)
    base = source.reservation.base_vaddr
    always = huge_pages.thp_setting() == "always"
    assert huge_pages.thp_bytes(base, base + SLAB_SIZE * 4) == 0 or always


def test_a_memory_file_grows_with_its_slabs_and_never_shrinks() -> None:
    source = source_of(MemoryKind.MEMFD)
    first = source.commit(0)
    assert source.file is not None
    assert source.file.size_bytes == SLAB_SIZE
    third = source.commit(2)
    assert source.file.size_bytes == 3 * SLAB_SIZE
    used = os.fstat(source.file.fd).st_blocks
    source.decommit(2, third)
    assert source.file.size_bytes == 3 * SLAB_SIZE
    assert os.fstat(source.file.fd).st_blocks == used // 2
    with pytest.raises(PermissionError):
        os.ftruncate(source.file.fd, SLAB_SIZE)
    source.decommit(0, first)
    assert os.fstat(source.file.fd).st_blocks == 0


def test_a_memory_file_is_the_memory() -> None:
    source = source_of(MemoryKind.MEMFD)
    source.commit(0)
    source.commit(1)
    assert source.file is not None
    content(source, 1)[10:15] = b"hello"
    assert os.pread(source.file.fd, 5, SLAB_SIZE + 10) == b"hello"
    os.pwrite(source.file.fd, b"world", 20)
    assert bytes(content(source, 0)[20:25]) == b"world"


def test_a_closed_memory_file_keeps_its_slabs_and_takes_no_more() -> None:
    source = source_of(MemoryKind.MEMFD)
    slab = source.commit(0)
    assert source.file is not None
    source.file.close()
    source.file.close()
    assert source.file.closed
    content(source, 0)[0] = 1
    with pytest.raises(MemoryKindError):
        source.commit(1)
    source.decommit(0, slab)


def test_a_memory_file_on_a_kernel_before_noexec(monkeypatch: pytest.MonkeyPatch) -> None:
    create = os.memfd_create

    def old_memfd_create(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_memfd_create)
    file = MemoryFile()
    assert not os.get_inheritable(file.fd)
    file.close()

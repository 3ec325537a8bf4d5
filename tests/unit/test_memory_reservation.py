# SPDX-License-Identifier: MIT
"""Address space without memory: alignment, holes, and how long it lives."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from pagepool._core.params import SLAB_SIZE
from pagepool.memory import _libc
from pagepool.memory.reservation import Reservation


def mapped_ranges() -> list[tuple[int, int, str]]:
    with open("/proc/self/maps", encoding="ascii") as maps:
        heads = [line.split()[:2] for line in maps]
    spans = [(span.partition("-"), prot) for span, prot in heads]
    return [(int(first, 16), int(end, 16), prot) for (first, _, end), prot in spans]


def prot_of(vaddr: int) -> str | None:
    return next((prot for first, end, prot in mapped_ranges() if first <= vaddr < end), None)


@pytest.mark.parametrize("size_bytes", [1, SLAB_SIZE, SLAB_SIZE + 1, 1 << 30, 64 << 30])
def test_is_aligned_and_rounded_up_to_slabs(size_bytes: int) -> None:
    reservation = Reservation(size_bytes)
    assert reservation.base_vaddr % SLAB_SIZE == 0
    assert reservation.size_bytes % SLAB_SIZE == 0
    assert 0 <= reservation.size_bytes - size_bytes < SLAB_SIZE
    assert reservation.nr_slabs * SLAB_SIZE == reservation.size_bytes


def test_nothing_may_touch_it_nor_the_margins() -> None:
    reservation = Reservation(SLAB_SIZE)
    end = reservation.base_vaddr + reservation.size_bytes
    for vaddr in (reservation.base_vaddr - 1, reservation.base_vaddr, end - 1, end):
        assert prot_of(vaddr) == "---p"


def test_a_hole_closes_behind_a_slab() -> None:
    reservation = Reservation(2 * SLAB_SIZE)
    vaddr = reservation.slab_vaddr(1)
    flags = _libc.MAP_PRIVATE | _libc.MAP_ANONYMOUS | _libc.MAP_FIXED
    _libc.mmap(vaddr, SLAB_SIZE, _libc.PROT_READ_WRITE, flags)
    assert prot_of(vaddr) == "rw-p"
    reservation.close_hole(1)
    assert prot_of(vaddr) == "---p"


def test_goes_with_its_last_reference() -> None:
    reservation = Reservation(SLAB_SIZE)
    alive = weakref.ref(reservation._range)
    del reservation
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("index", [-1, 2])
def test_a_slab_outside_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match="0 to 1"):
        Reservation(2 * SLAB_SIZE).slab_vaddr(index)


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_needs_a_positive_size(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="not positive"):
        Reservation(size_bytes)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from pagepool.errors import DeviceError
from pagepool.memory import PageAllocator
try:
    PageAllocator(size_bytes=4 << 30)
except DeviceError as error:
    assert "ulimit -v" in str(error) and "4096 MiB" in str(error), error
else:
    raise AssertionError("4 GiB of a 2 GiB address space")
assert 64 << 20 <= PageAllocator().size_bytes < 2 << 30
"""


def test_a_limited_address_space_is_named_and_the_default_fits_in() -> None:
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=30)

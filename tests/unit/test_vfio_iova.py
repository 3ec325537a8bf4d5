# SPDX-License-Identifier: MIT
"""The iova allocator against a model: a plain set of granules."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.dma.vfio.iova import LOWEST_IOVA, IovaSpace
from pagepool.errors import DeviceError

INTEL = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0xFFFF_FFFF_FFFF)]  # as an emulated VT-d says it
SLAB = 2 << 20


def test_slabs_are_aligned_and_start_low() -> None:
    space = IovaSpace(INTEL)
    assert [space.alloc(SLAB) for _ in range(3)] == [SLAB, 2 * SLAB, 3 * SLAB]
    assert space.alloc(4096) == LOWEST_IOVA


def test_no_range_crosses_the_interrupt_window() -> None:
    space = IovaSpace(INTEL)
    taken = [space.alloc(1 << 30) for _ in range(5)]
    assert all(iova + (1 << 30) <= 0xFEE0_0000 or iova >= 0xFEF0_0000 for iova in taken)


def test_device_with_few_address_bits() -> None:
    space = IovaSpace(INTEL, address_bits=28)
    got = [space.alloc(SLAB) for _ in range(127)]
    with pytest.raises(DeviceError) as refused:
        space.alloc(SLAB)
    assert refused.value.errno == errno.ENOSPC
    assert max(got) + SLAB == 1 << 28
    assert "0xfedfffff" in str(refused.value)


def test_reserve_refuses_what_is_taken_or_outside() -> None:
    space = IovaSpace(INTEL)
    space.reserve(0x4000_0000, SLAB)
    for iova in (0x4000_0000, 0x4000_0000 + SLAB - 4096, 0x4000_0000 - SLAB + 4096, 0xFEE0_0000, 1 << 60, 0):
        with pytest.raises(DeviceError) as refused:
            space.reserve(iova, SLAB)
        assert refused.value.errno == errno.EEXIST


def test_free_twice_is_refused() -> None:
    space = IovaSpace(INTEL)
    iova = space.alloc(SLAB)
    space.free(iova, SLAB)
    before = space.free_intervals
    with pytest.raises(ValueError, match="free already"):
        space.free(iova, SLAB)
    with pytest.raises(ValueError, match="free already"):
        space.free(iova + 4096, 4096)
    assert space.free_intervals == before


@pytest.mark.parametrize("size_bytes", [0, -4096, 1, 4095, 6000])
def test_sizes_off_the_granule(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        IovaSpace(INTEL).alloc(size_bytes)


def test_granule_of_64_kib() -> None:
    space = IovaSpace([(0x1234, 0x40_0000)], granule_bytes=1 << 16)
    assert space.alloc(1 << 16) == LOWEST_IOVA
    with pytest.raises(ValueError, match="65536"):
        space.alloc(4096)


G = 4096
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 12)),
        st.tuples(st.just("reserve"), st.integers(0, 80), st.integers(1, 8)),
        st.tuples(st.just("free"), st.integers(0, 1000)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=3),
    _operations,
)
def test_against_a_set_of_granules(pieces: list[tuple[int, int]], operations: list[tuple[str, ...]]) -> None:
    base = LOWEST_IOVA // G
    ranges, at = [], base
    for gap, length in pieces:  # disjoint, in order, never touching
        at += gap + 1
        ranges.append((at * G, (at + length) * G - 1))
        at += length
    space = IovaSpace(ranges)
    free = {g for first, last in ranges for g in range(first // G, (last + 1) // G)}
    taken: dict[int, int] = {}
    for kind, *arguments in operations:
        if kind == "alloc":
            n = int(arguments[0])
            align = n & -n
            fits = [g for g in sorted(free) if g % align == 0 and all(g + k in free for k in range(n))]
            if fits:
                iova = space.alloc(n * G)
                assert iova == fits[0] * G  # first fit
                taken[iova] = n
                free -= set(range(fits[0], fits[0] + n))
            else:
                with pytest.raises(DeviceError):
                    space.alloc(n * G)
        elif kind == "reserve":
            g, n = base + int(arguments[0]), int(arguments[1])
            if all(g + k in free for k in range(n)):
                space.reserve(g * G, n * G)
                taken[g * G] = n
                free -= set(range(g, g + n))
            else:
                with pytest.raises(DeviceError):
                    space.reserve(g * G, n * G)
        elif taken:
            iova = sorted(taken)[int(arguments[0]) % len(taken)]
            n = taken.pop(iova)
            space.free(iova, n * G)
            free |= set(range(iova // G, iova // G + n))
        intervals = space.free_intervals
        assert space.free_bytes == len(free) * G
        assert all(end < first for (_, end), (first, _) in pairwise(intervals))
        assert {g for first, end in intervals for g in range(first // G, end // G)} == free

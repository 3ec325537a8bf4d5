# SPDX-License-Identifier: MIT
"""A page allocator in figures and in words. Plain data: nothing here reads or changes memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pagepool.memory.kinds import MemoryKind


@dataclass(frozen=True, slots=True)
class AllocatorStats:
    """Figures of one moment (each is exact; together they may be a few pages apart).

    Attributes
    ----------
    reserved_bytes : int
        Address space.
    committed_bytes : int
        Memory: slabs that are mapped.
    free_bytes, used_bytes : int
        The committed bytes that the allocator could hand out, and those that pools or others have.
    limit_bytes : int
        The most it will commit.
    slabs, slabs_grown, slabs_given_back : int
        Slabs of 2 MiB now, and how often one was committed and given back.
    grow_failures : int
        How often a slab was wanted and could not be had.
    alloc_calls, free_calls : int
        Calls of the pools; a bulk counts once.
    pages_allocated, pages_freed : int
        Pages of 4 KiB they took and gave back.
    """

    reserved_bytes: int
    committed_bytes: int
    free_bytes: int
    used_bytes: int
    limit_bytes: int
    slabs: int
    slabs_grown: int
    slabs_given_back: int
    grow_failures: int
    alloc_calls: int
    free_calls: int
    pages_allocated: int
    pages_freed: int


def describe_kinds(asked: MemoryKind, got: Counter[MemoryKind]) -> str:
    """Say what memory there is, the kind that was asked for first.

    >>> describe_kinds(MemoryKind.HUGETLB, Counter({MemoryKind.HUGETLB: 3, MemoryKind.ANONYMOUS: 1}))
    '2 MiB huge pages (3 of 4 slabs), rest 4 KiB pages'
    """
    every: list[MemoryKind] = [asked, *asked.stand_ins, *MemoryKind]
    there = [kind for kind in dict.fromkeys(every) if got[kind]]
    if not there:
        return "no memory"
    first, rest = there[0], there[1:]
    if not rest:
        return first.words
    words = [f"{kind.words} ({got[kind]})" if len(rest) > 1 else kind.words for kind in rest]
    return f"{first.words} ({got[first]} of {got.total()} slabs), rest {' and '.join(words)}"


def describe_nodes(nids: Counter[int]) -> str:
    """Say which NUMA nodes the slabs are on: ``node 0: 3 slabs, node 1: 1 slab``."""
    return ", ".join(f"node {nid}: {nids[nid]} slab{'s' * (nids[nid] != 1)}" for nid in sorted(nids))

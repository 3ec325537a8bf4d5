# SPDX-License-Identifier: MIT
"""Any order of maps, unmaps, syncs and accesses gives the verdicts and bytes of a model too slow to be wrong."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pagepool.dma import DmaDir, FindingKind, SoftIommu

K = FindingKind
PAGE, CELL = 4096, 1024  # ranges are made of cells, so that the model can be a list of them
CELLS = PAGE // CELL
NR_PAGES = 4
CPU, DEVICE, WRITTEN = "CPU", "device", "device wrote"

pages = st.integers(0, NR_PAGES - 1)
cells = st.integers(0, NR_PAGES * CELLS)
values = st.integers(0, 2)
which = st.integers(0, 5)


@dataclass
class Mapped:
    """The model of one mapping: for each cell an owner, and the value that the device's side last knew."""

    dma_addr: int
    first: int  # cell of the memory
    dma_dir: DmaDir
    owner: list[str]
    seen: list[int]
    alive: bool = True

    def __len__(self) -> int:
        return len(self.owner)


class IommuMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.memory = mmap.mmap(-1, NR_PAGES * PAGE)
        self.vaddr = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.iommu = SoftIommu(collect=True, max_findings=10_000)
        self.cells = [0] * (NR_PAGES * CELLS)
        self.mapped: list[Mapped] = []
        self.expected: Counter[FindingKind] = Counter()

    def pick(self, number: int) -> Mapped | None:
        alive = [one for one in self.mapped if one.alive] if number else []
        return (alive or self.mapped)[-1 - number % len(alive or self.mapped)] if self.mapped else None

    # -- what a driver does

    @rule(first=pages, length=st.integers(1, 2), dma_dir=st.sampled_from(list(DmaDir)[:3]))
    def map(self, first: int, length: int, dma_dir: DmaDir) -> None:
        length = min(length, NR_PAGES - first)
        span = range(first * CELLS, (first + length) * CELLS)
        for other in self.mapped:
            if (
                other.alive
                and other.dma_dir == dma_dir
                and set(span) & set(range(other.first, other.first + len(other)))
            ):
                self.expected[K.DOUBLE_MAP] += 1
                break
        dma_addr = self.iommu.map(self.vaddr + first * PAGE, length * PAGE, dma_dir)
        n = len(span)
        self.mapped.append(Mapped(dma_addr, span.start, dma_dir, [CPU] * n, [0] * n))

    @rule(number=which)
    def unmap(self, number: int) -> None:
        if (one := self.pick(number)) is None:
            return
        if not one.alive:
            self.expected[K.DOUBLE_UNMAP] += 1
        one.alive = False
        self.iommu.unmap(one.dma_addr, len(one) * CELL, one.dma_dir)

    @rule(number=which, at=cells, n=cells, for_cpu=st.booleans())
    def sync(self, number: int, at: int, n: int, for_cpu: bool) -> None:
        if (one := self.pick(number)) is None:
            return
        at, n = self.fit(one, at, n)
        if self.reaches(one, at, n):
            span = range(at, at + n)
            if for_cpu:
                self.expected[K.NOT_SYNCED_FOR_CPU] += not all(self.knows(one, i) for i in span)
                one.owner[at : at + n] = [CPU] * n
            else:
                one.owner[at : at + n] = [DEVICE] * n
            for i in span:
                one.seen[i] = self.cells[one.first + i]
        call = self.iommu.sync_for_cpu if for_cpu else self.iommu.sync_for_device
        call(one.dma_addr + at * CELL, n * CELL, one.dma_dir)

    # -- what a device does

    @rule(number=which, at=cells, n=cells, value=values)
    def device_writes(self, number: int, at: int, n: int, value: int) -> None:
        if (one := self.pick(number)) is None:
            return
        at, n = self.fit(one, at, n)
        if self.reaches(one, at, n) and self.may(one, DmaDir.FROM_DEVICE):
            self.judge_owner(one, at, n)
            for i in range(at, at + n):
                one.owner[i], one.seen[i] = WRITTEN, value
                self.cells[one.first + i] = value
        self.iommu.dma_write(one.dma_addr + at * CELL, bytes((value,)) * (n * CELL))

    @rule(number=which, at=cells, n=cells)
    def device_reads(self, number: int, at: int, n: int) -> None:
        if (one := self.pick(number)) is None:
            return
        at, n = self.fit(one, at, n)
        expected = [0xFF] * n
        if self.reaches(one, at, n) and self.may(one, DmaDir.TO_DEVICE):
            self.judge_owner(one, at, n)
            expected = self.cells[one.first + at : one.first + at + n]
        got = self.iommu.dma_read(one.dma_addr + at * CELL, n * CELL)
        assert got == b"".join(bytes((value,)) * CELL for value in expected)

    # -- what the CPU does, announced and not

    @rule(cell=st.integers(0, NR_PAGES * CELLS - 1), value=values)
    def cpu_pokes(self, cell: int, value: int) -> None:
        self.cells[cell] = value
        ctypes.memset(self.vaddr + cell * CELL, value, CELL)

    @rule(number=which, at=cells, n=cells, write=st.booleans())
    def cpu_announces(self, number: int, at: int, n: int, write: bool) -> None:
        if (one := self.pick(number)) is None:
            return
        at, n = self.fit(one, at, n)
        if self.reaches(one, at, n):
            self.expected[K.NOT_SYNCED_FOR_CPU] += WRITTEN in one.owner[at : at + n]
            if write:
                one.owner[at : at + n] = [CPU] * n
        (self.iommu.cpu_write if write else self.iommu.cpu_read)((one.dma_addr + at * CELL, n * CELL))

    def fit(self, one: Mapped, at: int, n: int) -> tuple[int, int]:
        """Make most ranges lie inside a mapping, some leave it, and some begin in the gap that follows it."""
        at %= len(one) + 1
        return at, n % (len(one) - at + 2)

    # -- the model's verdicts

    def reaches(self, one: Mapped, at: int, n: int) -> bool:
        """Whether a range is mapped; what begins behind the end is the gap that follows every mapping."""
        if at >= len(one):
            self.expected[K.UNMAPPED] += 1
        elif not one.alive:
            self.expected[K.USE_AFTER_UNMAP] += 1
        elif at + n > len(one):
            self.expected[K.OUT_OF_RANGE] += 1
        return at < len(one) and one.alive and at + n <= len(one)

    def may(self, one: Mapped, wanted: DmaDir) -> bool:
        allowed = one.dma_dir in (wanted, DmaDir.BIDIRECTIONAL)
        self.expected[K.WRONG_DIRECTION] += not allowed
        return allowed

    def knows(self, one: Mapped, i: int) -> bool:
        """Whether a cell is the CPU's, or is the device's and what the device knows."""
        return one.owner[i] == CPU or one.seen[i] == self.cells[one.first + i]

    def judge_owner(self, one: Mapped, at: int, n: int) -> None:
        span = range(at, at + n)
        if any(one.owner[i] == CPU for i in span):
            self.expected[K.NOT_SYNCED_FOR_DEVICE] += 1
            return
        self.expected[K.NOT_SYNCED_FOR_DEVICE] += not all(self.knows(one, i) for i in span)
        for i in span:
            one.seen[i] = self.cells[one.first + i]

    @invariant()
    def verdicts_and_bytes_are_the_models(self) -> None:
        assert self.iommu.counts == +self.expected
        assert [self.memory[i * CELL + 17] for i in range(len(self.cells))] == self.cells
        assert self.iommu.nr_mappings == sum(one.alive for one in self.mapped)

    def teardown(self) -> None:
        alive = sum(one.alive for one in self.mapped)
        self.iommu.close()
        assert self.iommu.counts[K.LEAKED_MAPPING] == alive


TestIommu = IommuMachine.TestCase
TestIommu.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)

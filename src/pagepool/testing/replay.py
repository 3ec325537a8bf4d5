# SPDX-License-Identifier: MIT
"""The kernel as oracle: replays what a real page_pool was asked for, and compares what it did with what ours does.

A recording is the list of calls that one pool of the kernel received, in order, with what was seen of the pool after
each. What the workload decided is replayed (which call, which page, whether the caller was the consumer, who else held
the page, how many fragments were back); what the pool decided is compared (which page it handed out, at what offset,
from which tier, where a page went, and what the device was asked). Pages have the number under which they entered the
pool (its hold count), so a pool that recycles in another order is found out at the next allocation.

Not a benchmark, and no place for tolerance: a difference is a `Mismatch` with the call at which it shows. What is
allowed for is in `Allowance`, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pagepool.memory import PageAllocator
from pagepool.testing.recording import Recording, changes
from pagepool.testing.replayed_pool import RESERVE_PAGES, ReplayedPool

__all__ = ["Allowance", "Mismatch", "Replay"]

RING_BATCH = 16  # entries that ptr_ring clears at a time


class Mismatch(AssertionError):
    """Ours did something else than the kernel's; the text says at which call, and what each did."""


@dataclass
class Allowance:
    """The differences that a replay allows for, each counted. All are in ``docs/kernel_differences.md``.

    Attributes
    ----------
    refused_early : int
        Pages that the kernel's ring refused while there was room for 1 to `RING_BATCH` - 1: ``ptr_ring`` clears the
        slots that it has consumed so many at a time. Ours would take them; it is made to let go of the same pages.
    late_in_ring : int
        Pages put after the pool was destroyed, which the kernel's counts into the ring before a timer frees them.
    empty_syncs : int
        Syncs of no bytes, which the kernel's passes on to the device.
    """

    refused_early: int = 0
    late_in_ring: int = 0
    empty_syncs: int = 0


@dataclass
class Replay:
    """One replay of one recording, on a pool and an allocator of its own.

    Parameters
    ----------
    recording : Recording
    pin : bool
        Run each call on the CPU that ran it in the kernel: for recordings with `Recording.needs_nodes`, on a machine
        whose CPUs are on the same nodes.
    memory : callable, optional
        Makes what the pool takes its pages from; by default an allocator that is closed again.

    Attributes
    ----------
    compared : int
        How many values were compared, and equal.
    allowed : Allowance
        What was allowed for.
    marks : dict
        Mark -> the kernel's counters and ours at that point, by netlink's names.
    events : list of (str, int, int)
        What our pool's observer was told: event, page (0 where it is about none), count.

    Notes
    -----
    Context: the thread that calls `run` is the pool's owner, in the place of the kernel's NAPI; calls that the kernel
    got from elsewhere come from a thread of their own.
    """

    recording: Recording
    pin: bool = False
    memory: Callable[[], Any] | None = None
    compared: int = 0
    allowed: Allowance = field(default_factory=Allowance)
    marks: dict[str, tuple[dict[str, int], dict[str, int]]] = field(default_factory=dict)
    events: list[tuple[str, int, int]] = field(default_factory=list)

    def run(self) -> dict[str, int]:
        """Replay every call; return our figures at the end.

        Raises
        ------
        Mismatch
            At the first difference.
        """
        self._expected = dict.fromkeys(self.recording.figures, 0)
        cpus = os.sched_getaffinity(0)
        memory = self.memory() if self.memory else self._allocator()
        with ThreadPoolExecutor(1) as elsewhere:
            self._pool = ReplayedPool(self.recording.params, memory, elsewhere)
            self.events = self._pool.events
            try:
                for number, call in enumerate(self.recording.calls):
                    self._one(number, call)
                return self._figures()
            finally:
                os.sched_setaffinity(0, cpus)
                self._pool.give_up()
                if isinstance(memory, PageAllocator):
                    memory.close()

    def _allocator(self) -> PageAllocator:
        if any(call["call"] == "reserve" for call in self.recording.calls):
            return PageAllocator(32 << 20, commit=True, reserve_pages=RESERVE_PAGES)  # fixed, so that it can be used up
        return PageAllocator(256 << 20)

    def _one(self, number: int, call: dict[str, Any]) -> None:
        kind, seen = call["call"], changes(call)
        if self.pin and kind in ("alloc", "frag", "take", "reserve"):
            os.sched_setaffinity(0, {call["cpu"]})
        self._pool.refuse(self._refused_early(call))
        found = getattr(self._pool, "call_" + kind)(call)
        for name, value in found.items():
            if name == "stats":
                self.marks[call["name"]] = (call["stats"], value)
                value = {name: value[name] for name in call["stats"]}
            if call[name] != value:
                raise self._mismatch(number, call, f"{name}: the kernel's {call[name]}, ours {value}")
        for name, change in seen.items():
            self._expected[name] += change
        self._allow(call)
        self._compare(number, call)
        self._compare_dma(number, call)
        self.compared += len(found)

    def _compare(self, number: int, call: dict[str, Any]) -> None:
        figures, size = self._figures(), self._pool.ring_size
        if call.get("seen", {}) is None:  # the kernel's is gone, which it is when all pages are back
            self._expected = figures | {"hold_cnt": figures["release_cnt"]}
        for name, expected in self._expected.items():
            ours = figures[name]
            if name == "in_ring" and not self.recording.driven:  # there only producer and consumer show
                expected, ours = expected % size, ours % size
            if expected != ours:
                raise self._mismatch(number, call, f"{name}: the kernel's {expected}, ours {ours}")
        self.compared += len(self._expected)

    def _compare_dma(self, number: int, call: dict[str, Any]) -> None:
        theirs, ours = self._dma_of(call), self._pool.dma_calls()
        if call["call"] in ("destroy", "bulk"):  # which page goes first there is nobody's business
            theirs, ours = (sorted(calls, key=lambda event: event[1]) for calls in (theirs, ours))
        for at in range(max(len(theirs), len(ours))):
            if theirs[at : at + 1] != ours[at : at + 1]:
                raise self._mismatch(number, call, f"DMA: the kernel's {theirs[at:]}, ours {ours[at:]}")
        self.compared += 4 * len(theirs)

    # -- what is allowed for -------------------------------------------------------------------------------------

    def _refused_early(self, call: dict[str, Any]) -> bool:
        """Whether the kernel's ring refused in this call although it had room."""
        room = self._pool.ring_size - self._figures()["in_ring"] - changes(call).get("ring", 0)
        early = bool(call.get("early"))
        if call["call"] == "put":  # of a watched pool: a plain put that became a release
            early = call["seen"] == {"release_cnt": 1} and call["refs"] == 1
        return early and 0 < room < RING_BATCH

    def _allow(self, call: dict[str, Any]) -> None:
        pages = len(self._pool.refused)
        self.allowed.refused_early += pages
        if pages and self.recording.driven:  # ours let go of them for another reason
            self._expected["released_refcnt"] += pages
            self._expected["ring_full"] -= 1
            if "cache_full" in call["seen"]:  # of the consumer's, whose cache was full before
                self._expected["cache_full"] -= pages
        if self._pool.pool.closed and (late := changes(call).get("ring", 0)):
            self.allowed.late_in_ring += late
            self._expected["ring"] -= late

    def _dma_of(self, call: dict[str, Any]) -> list[list[Any]]:
        """What the kernel asked its device, but for what is allowed for."""
        calls = [list(event) for event in call.get("dma", [])]
        kept = [event for event in calls if event[0] != "sync_for_device" or event[3]]
        self.allowed.empty_syncs += len(calls) - len(kept)
        # A page that the ring refuses was synced for nothing.
        return [event for event in kept if event[0] != "sync_for_device" or event[1] not in self._pool.refused]

    # -- looking on ----------------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, int]:
        stats = self._pool.pool.stats()
        return {name: getattr(stats, name) for name in self.recording.figures}

    def _mismatch(self, number: int, call: dict[str, Any], what: str) -> Mismatch:
        shown = {name: value for name, value in call.items() if name not in ("seen", "dma")}
        return Mismatch(f"call {number} of {len(self.recording.calls)}, {shown}: {what}")

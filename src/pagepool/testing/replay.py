# SPDX-License-Identifier: MIT
"""The kernel as oracle: replays what a real page_pool was asked for, and compares what it did with what ours does.

A recording is the list of calls that one pool of the kernel received, in order, with what was seen of the pool after
each. What the workload decided is replayed (which call, which page, whether the caller was the consumer, who else held
the page, how many fragments were back); what the pool decided is compared (which page it handed out, at what offset,
from which tier, and where a page went). Pages have the number under which they entered the pool (its hold count), so a
pool that recycles in another order is found out at the next allocation.

Not a benchmark, and no place for tolerance: a difference is a `Mismatch` with the call at which it shows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagepool._core.page import Page
from pagepool._core.page_pool import PagePool
from pagepool.memory import PageAllocator

__all__ = ["Mismatch", "Recording", "Replay", "load", "save"]

#: What is compared after every call, by the name of our figure; ``in_ring`` modulo the ring's size, since the kernel
#: only shows where producer and consumer stand.
SEEN = (
    "fast",
    "slow",
    "slow_high_order",
    "empty",
    "refill",
    "waive",
    "in_cache",
    "in_ring",
    "hold_cnt",
    "release_cnt",
)


#: ``ptr_ring`` clears the slots that it has consumed this many at a time, and refuses pages until it does: the one
#: difference that a replay allows for. It ends there, since the two hold different pages from then on.
RING_BATCH = 16


@dataclass(frozen=True)
class Recording:
    """The calls of one pool, from its creation on.

    Parameters
    ----------
    kernel : str
        Release of the kernel that was watched.
    workload : str
        What was done to it, for the reader.
    params : dict
        ``order``, ``pool_size`` (entries) and ``nid`` as the driver gave them.
    calls : list of dict
        ``call`` (``alloc frag put mark destroy``), its inputs and results, and under ``seen`` the figures of
        `SEEN` that changed, by how much.
    """

    kernel: str
    workload: str
    params: dict[str, Any]
    calls: list[dict[str, Any]]

    @property
    def needs_nodes(self) -> bool:
        """Whether the pool's pages came from more NUMA nodes than one, so that a replay must run on such a machine."""
        return any("waive" in call.get("seen", {}) for call in self.calls)


#: In a file a call is a row: its kind, then these, then ``seen`` as words (``fast+1 in_cache-1``).
_COLUMNS = {
    "alloc": ("cpu", "page"),
    "frag": ("cpu", "size", "back", "takes_rest", "page", "offset"),
    "put": ("cpu", "page", "direct", "refs"),
    "mark": ("name", "stats"),
    "destroy": ("back",),
}


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that `save` wrote."""
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    fields["calls"] = [_call(*row) for row in fields["calls"]]
    return Recording(**fields)


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording as JSON with a line for each call."""
    rows = ",\n".join(json.dumps(_row(call)) for call in recording.calls)
    head = {"kernel": recording.kernel, "workload": recording.workload, "params": recording.params}
    Path(path).write_text(f'{json.dumps(head)[:-1]}, "calls": [\n{rows}\n]}}\n', encoding="utf-8")


def _row(call: dict[str, Any]) -> list[Any]:
    seen = " ".join(f"{name}{change:+d}" for name, change in call.get("seen", {}).items())
    return [call["call"], *(call[name] for name in _COLUMNS[call["call"]]), seen]


def _call(kind: str, *values: Any) -> dict[str, Any]:
    *inputs, seen = values
    changes = (re.fullmatch(r"(\w+)([+-]\d+)", word) for word in seen.split())
    return {
        "call": kind,
        **dict(zip(_COLUMNS[kind], inputs, strict=True)),
        "seen": {change[1]: int(change[2]) for change in changes if change},
    }


class Mismatch(AssertionError):
    """Ours did something else than the kernel's; the text says at which call, and what each did."""


@dataclass
class Replay:
    """One replay of one recording, on a pool and an allocator of its own.

    Parameters
    ----------
    recording : Recording
    pin : bool
        Run each call on the CPU that ran it in the kernel: for recordings with `Recording.needs_nodes`, on a machine
        whose CPUs are on the same nodes.

    Attributes
    ----------
    compared : int
        How many values were compared, and equal.
    ended_early : str
        Why the replay ended before the recording did, see `RING_BATCH`; empty as a rule.
    marks : dict
        Mark -> the kernel's counters and ours at that point, by netlink's names.

    Notes
    -----
    Context: the thread that calls `run` is the pool's owner, in the place of the kernel's NAPI; calls that the kernel
    got from elsewhere come from a thread of their own.
    """

    recording: Recording
    pin: bool = False
    compared: int = 0
    ended_early: str = ""
    marks: dict[str, tuple[dict[str, int], dict[str, int]]] = field(default_factory=dict)

    def run(self) -> dict[str, int]:
        """Replay every call; return our figures at the end.

        Raises
        ------
        Mismatch
            At the first difference.
        """
        params = self.recording.params
        self._expected = dict.fromkeys(SEEN, 0)
        self._serials: dict[int, int] = {}  # our id -> the number under which it entered
        self._whole: dict[int, Page] = {}
        self._fragments: dict[int, list[Page]] = {}
        self._carved = 0  # page that fragments come from, and how many of its fragments are back
        self._back = 0
        self._entered = 0
        cpus = os.sched_getaffinity(0)
        with ThreadPoolExecutor(1) as elsewhere, PageAllocator(256 << 20) as memory:
            self._elsewhere = elsewhere
            self._pool = PagePool(memory=memory, **params)
            self._pool.set_observer(self._observe)
            try:
                for number, call in enumerate(self.recording.calls):
                    self._one(number, call)
                    if self.ended_early:
                        break
            finally:
                os.sched_setaffinity(0, cpus)
                for pages in (self._whole.values(), *self._fragments.values()):
                    for page in list(pages):
                        page.put()
                self._whole.clear()
                self._fragments.clear()
                self._pool.set_observer(None)
                self._pool.close()
            return self._figures()

    def _one(self, number: int, call: dict[str, Any]) -> None:
        kind = call["call"]
        if self.pin and "cpu" in call and kind in ("alloc", "frag"):
            os.sched_setaffinity(0, {call["cpu"]})
        found = getattr(self, "_" + kind)(call)
        for name, value in found.items():
            if call[name] != value:
                raise self._mismatch(number, call, f"{name}: the kernel's {call[name]}, ours {value}")
        for name, change in call.get("seen", {}).items():
            self._expected[name] += change
        figures = self._figures()
        size = self.recording.params["pool_size"]
        if kind == "put" and call["seen"] == {"release_cnt": 1} and 0 < -self._expected["in_ring"] % size < RING_BATCH:
            room = -self._expected["in_ring"] % size
            self.ended_early = f"call {number}: the kernel's ring refused a page with room for {room}"
            return
        for name, expected in self._expected.items():
            ours = figures[name]
            if name == "in_ring":
                expected, ours = expected % size, ours % size
            if expected != ours:
                raise self._mismatch(number, call, f"{name}: the kernel's {expected}, ours {ours}")
        self.compared += len(found) + len(self._expected)

    # -- the calls: inputs in, what the pool decided out ---------------------------------------------------------

    def _alloc(self, call: dict[str, Any]) -> dict[str, Any]:
        page = self._pool.alloc_pages()
        self._whole[self._serials[page.id]] = page
        return {"page": self._serials[page.id]}

    def _frag(self, call: dict[str, Any]) -> dict[str, Any]:
        self._bring_back(call["back"])
        carve: Callable[[int], Page | None] = self._pool.alloc if call["takes_rest"] else self._pool.alloc_frag
        page = carve(call["size"])
        assert page is not None
        serial = self._serials[page.id]
        if serial != self._carved or page.offset == 0:
            self._carved, self._back = serial, 0
        self._fragments.setdefault(serial, []).append(page)
        return {"page": serial, "offset": page.offset}

    def _bring_back(self, count: int) -> None:
        while self._back < count:
            self._pool.put_page(self._fragments[self._carved].pop(0))
            self._back += 1

    def _put(self, call: dict[str, Any]) -> dict[str, Any]:
        serial = call["page"]
        if serial in self._whole:
            last = self._whole.pop(serial)
        else:
            *others, last = self._fragments.pop(serial)
            for page in others:
                self._pool.put_page(page)
        keeper = self._pool.get_page(last) if call["refs"] > 1 else None
        if call["direct"]:
            self._pool.put_page(last, -1, True)
        else:
            self._elsewhere.submit(self._pool.put_page, last).result()
        del keeper
        return {}

    def _mark(self, call: dict[str, Any]) -> dict[str, Any]:
        ours = self._pool.stats().kernel() | {"inflight": self._pool.inflight}
        self.marks[call["name"]] = (call["stats"], ours)
        return {"stats": {name: ours[name] for name in call["stats"]}}

    def _destroy(self, call: dict[str, Any]) -> dict[str, Any]:
        self._bring_back(call["back"])
        self._pool.close()
        return {}

    # -- looking on ----------------------------------------------------------------------------------------------

    def _observe(self, event: str, page_id: int, count: int) -> None:
        if event == "hold":
            self._entered += 1
            self._serials[page_id] = self._entered

    def _figures(self) -> dict[str, int]:
        stats = self._pool.stats()
        return {name: getattr(stats, name) for name in SEEN}

    def _mismatch(self, number: int, call: dict[str, Any], what: str) -> Mismatch:
        shown = {name: value for name, value in call.items() if name != "seen"}
        return Mismatch(f"call {number} of {len(self.recording.calls)}, {shown}: {what}")

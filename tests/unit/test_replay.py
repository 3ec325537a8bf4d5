# SPDX-License-Identifier: MIT
"""What the kernel's page_pool did, recorded in a virtual machine, replayed here: same pages, same tiers, same counters.

The recordings are made by ``tests/vm/guest/oracle.py`` and ``oracle_driver.py``; see ``docs/kernel_differences.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_doubles import NodeMemory

from pagepool import Page, PagePool
from pagepool.testing.recording import COLUMNS, DRIVEN, Recording, load, save
from pagepool.testing.replay import Mismatch, Replay

RECORDINGS = sorted((Path(__file__).parents[1] / "data").glob("*.json"))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load(request.param)


def a_recording(name: str) -> Recording:
    return load(next(path for path in RECORDINGS if path.stem == name))


def replay_of(recording: Recording) -> Replay:
    """A replay; pages of two nodes come from memory that says it is on two."""
    return Replay(recording, memory=(lambda: NodeMemory(0, 0, 1, 1)) if recording.needs_nodes else None)


def test_ours_does_what_the_kernel_did(recording: Recording) -> None:
    replay = replay_of(recording)
    figures = replay.run()
    assert replay.compared > 10 * (len(recording.calls) - 1)
    for kernels, ours in replay.marks.values():
        assert kernels == {name: ours[name] for name in kernels}
    assert figures["hold_cnt"] == figures["release_cnt"]


def test_recordings_cover_every_tier() -> None:
    seen = {name for path in RECORDINGS for call in load(path).calls for name in call.get("seen") or {}}
    kinds = {call["call"] for path in RECORDINGS for call in load(path).calls}
    asked = {event[0] for path in RECORDINGS for call in load(path).calls for event in call.get("dma", [])}
    assert seen == set(DRIVEN)
    assert kinds == set(COLUMNS)
    assert asked == {"map", "map_failed", "unmap", "sync_for_device", "sync_for_cpu"}


def test_what_is_allowed_for_is_met() -> None:
    """Each of the differences that a replay allows for is in some recording, and is needed there."""
    total: Counter[str] = Counter()
    for path in RECORDINGS:
        replay = replay_of(load(path))
        replay.run()
        total.update(vars(replay.allowed))
    assert all(count > 0 for count in total.values()), total
    early = a_recording("random")
    for call in early.calls:
        call["early"] = 0
    with pytest.raises(Mismatch, match="the kernel's"):
        Replay(early).run()


def test_a_file_holds_all_of_a_recording(recording: Recording, tmp_path: Path) -> None:
    save(recording, tmp_path / "again.json")
    assert load(tmp_path / "again.json") == recording


def other_page(call: dict[str, Any]) -> None:
    call["page"] += 1


def other_tier(call: dict[str, Any]) -> None:
    call["seen"] = {"refill": 1}


def other_offset(call: dict[str, Any]) -> None:
    call["offset"] += 64


def other_sync(call: dict[str, Any]) -> None:
    call["dma"][-1][3] += 1


@pytest.mark.parametrize(
    ("name", "kind", "change", "words"),
    [
        ("virtio_mixed", "frag", other_page, "page: the kernel's"),
        ("virtio_mixed", "frag", other_tier, "the kernel's"),
        ("virtio_mixed", "frag", other_offset, "offset: the kernel's"),
        ("virtio_mixed", "mark", lambda call: call["stats"].update({"recycle-ring": 7}), "stats: the kernel's"),
        ("dma", "take", other_page, "page: the kernel's"),
        ("dma", "give", lambda call: call["seen"].update({"ring_full": 1}), "ring_full: the kernel's"),
        ("dma", "give", other_sync, "DMA: the kernel's"),
        ("dma", "give", lambda call: call["dma"].clear(), "DMA: the kernel's"),
        ("dma", "destroy", lambda call: call["dma"].pop(), "DMA: the kernel's"),
    ],
    ids=["page", "tier", "offset", "counters", "driven page", "driven counter", "sync", "no sync", "no unmap"],
)
def test_a_difference_is_found(name: str, kind: str, change: Callable[[dict[str, Any]], None], words: str) -> None:
    recording = a_recording(name)
    calls = [i for i, call in enumerate(recording.calls) if call["call"] == kind]
    number = calls[len(recording.calls) // 8 % 4 % len(calls)]
    change(recording.calls[number])
    with pytest.raises(Mismatch, match=f"^call {number} of .*{words}"):
        Replay(recording).run()


@pytest.mark.needs_numa
def test_pinned_replay_runs_on_the_recorded_cpus() -> None:
    replay = Replay(a_recording("virtio_mixed"), pin=True)
    replay.run()
    assert not any(vars(replay.allowed).values())


@pytest.mark.parametrize("take", [PagePool.alloc_pages, PagePool.dev_alloc_pages])
def test_an_empty_ring_counts_once_a_page(take: Callable[[PagePool], Page | None]) -> None:
    """Found by a replay: a single page counted it once in the fast way and once more in the slow."""
    with PagePool() as pool:
        page = take(pool)
        assert page is not None
        assert (pool.stats().empty, pool.stats().slow) == (1, 1)
        page.put()

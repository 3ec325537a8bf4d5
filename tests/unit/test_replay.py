# SPDX-License-Identifier: MIT
"""What the kernel's page_pool did, recorded in a virtual machine, replayed here: same pages, same tiers, same counters.

The recordings are made by ``tests/vm/guest/oracle.py``; see ``docs/kernel_differences.md`` for how.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagepool.testing.replay import Mismatch, Recording, Replay, load, save

RECORDINGS = sorted((Path(__file__).parents[1] / "data").glob("*.json"))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load(request.param)


def a_recording(name: str) -> Recording:
    return load(next(path for path in RECORDINGS if path.stem == name))


def test_ours_does_what_the_kernel_did(recording: Recording) -> None:
    assert not recording.needs_nodes
    replay = Replay(recording)
    figures = replay.run()
    assert not replay.ended_early
    assert replay.compared > 10 * len(recording.calls)
    for kernels, ours in replay.marks.values():
        assert kernels == ours
    assert figures["hold_cnt"] == figures["release_cnt"]


def test_recordings_cover_every_tier() -> None:
    seen = {name for path in RECORDINGS for call in load(path).calls for name in call.get("seen", {})}
    kinds = {call["call"] for path in RECORDINGS for call in load(path).calls}
    assert {"fast", "slow", "empty", "refill", "in_cache", "in_ring", "release_cnt"} <= seen
    assert kinds == {"alloc", "frag", "put", "mark", "destroy"}


def test_a_file_holds_all_of_a_recording(recording: Recording, tmp_path: Path) -> None:
    save(recording, tmp_path / "again.json")
    assert load(tmp_path / "again.json") == recording


def other_page(call: dict[str, Any]) -> None:
    call["page"] += 1


def other_tier(call: dict[str, Any]) -> None:
    call["seen"] = {"refill": 1}


def other_offset(call: dict[str, Any]) -> None:
    call["offset"] += 64


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("frag", other_page, "page: the kernel's"),
        ("frag", other_tier, "the kernel's"),
        ("frag", other_offset, "offset: the kernel's"),
        ("mark", lambda call: call["stats"].update({"recycle-ring": 7}), "stats: the kernel's"),
    ],
    ids=["page", "tier", "offset", "counters"],
)
def test_a_difference_is_found(kind: str, change: Callable[[dict[str, Any]], None], words: str) -> None:
    recording = a_recording("virtio_mixed")
    number = [i for i, call in enumerate(recording.calls) if call["call"] == kind][len(recording.calls) // 8 % 4]
    change(recording.calls[number])
    with pytest.raises(Mismatch, match=f"^call {number} of .*{words}"):
        Replay(recording).run()


@pytest.mark.needs_numa
def test_pinned_replay_runs_on_the_recorded_cpus() -> None:
    replay = Replay(a_recording("virtio_mixed"), pin=True)
    replay.run()
    assert not replay.ended_early

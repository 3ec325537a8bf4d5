# SPDX-License-Identifier: MIT
"""The calls that one page_pool of the kernel received, and what was seen of it after each: plain data, and its file.

Made by the virtual machine's tests, replayed by `pagepool.testing.replay`. There are two kinds. *Watched* pools are a
driver's: what it was asked shows at the probes of the kernel's functions. *Driven* pools are the tests' own: each call
was made on purpose, all eleven counters are known after it, and the DMA calls that it led to.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "DRIVEN", "WATCHED", "Recording", "changes", "load", "save"]

#: Figures that are seen after each call of a watched pool, by our name.
WATCHED = (
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
#: And of a driven one.
DRIVEN = (*WATCHED, "cached", "cache_full", "ring", "ring_full", "released_refcnt")


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
        ``order``, ``pool_size`` (entries) and ``nid`` as the driver gave them; of a driven pool also ``flags``,
        ``dma_dir``, ``max_len``, ``offset`` (bytes) and whether it has a ``napi``.
    calls : list of dict
        ``call`` (see `COLUMNS`), its inputs and results, under ``seen`` the figures that changed and by how much, and
        under ``dma`` what the device was asked: ``[op, page, offset, size]``. ``seen`` is None where the pool is gone:
        it was destroyed, and its last page came home.
    driven : bool
        Whether all figures of `DRIVEN` were seen, or those of `WATCHED`.
    """

    kernel: str
    workload: str
    params: dict[str, Any]
    calls: list[dict[str, Any]]
    driven: bool = False

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that were seen after each call."""
        return DRIVEN if self.driven else WATCHED

    @property
    def needs_nodes(self) -> bool:
        """Whether the pool's pages came from more NUMA nodes than one, so that a replay must run on such a machine."""
        return any(call["call"] == "nid" or "waive" in changes(call) for call in self.calls)


#: In a file a call is a row: its kind, then these, then ``seen`` as words (``fast+1 in_cache-1``), then ``dma`` if
#: there is any. Pages have the number under which they entered the pool.
COLUMNS = {
    # of a watched pool
    "alloc": ("cpu", "page"),
    "frag": ("cpu", "size", "back", "takes_rest", "page", "offset"),
    "put": ("cpu", "page", "direct", "refs"),
    "mark": ("name", "stats"),
    "destroy": ("back",),
    # of a driven one. `consumer`: in the poll of the pool's NAPI. `early`: the ring refused with room (see Replay).
    "take": ("cpu", "size", "rest", "page", "offset", "length"),  # size 0: a whole page; rest: page_pool_alloc
    "reserve": ("cpu", "page"),  # a page out of the emergency reserve
    "give": ("cpu", "consumer", "page", "offset", "sync_bytes", "direct", "early"),
    "bulk": ("cpu", "consumer", "pages", "early"),
    "get": ("page",),  # another holder of the memory comes
    "drop": ("page",),  # and goes
    "ref": ("page", "count"),  # so many pool references more
    "unref": ("cpu", "consumer", "page", "count", "early"),  # so many at once less, the last may be among them
    "sync_cpu": ("page", "offset", "size"),
    "nid": ("cpu", "nid", "if_changed"),
    "auto_direct": ("on",),
    "user": (),
    "fail_map": ("at",),
}


def changes(call: dict[str, Any]) -> dict[str, int]:
    """Return what changed by a call, as far as it was seen."""
    return call.get("seen") or {}


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that `save` wrote."""
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    fields["calls"] = [_call(*row) for row in fields["calls"]]
    return Recording(**fields)


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording as JSON with a line for each call."""
    rows = ",\n".join(json.dumps(_row(call)) for call in recording.calls)
    head = {name: getattr(recording, name) for name in ("kernel", "workload", "params")}
    head |= {"driven": True} if recording.driven else {}
    Path(path).write_text(f'{json.dumps(head)[:-1]}, "calls": [\n{rows}\n]}}\n', encoding="utf-8")


def _row(call: dict[str, Any]) -> list[Any]:
    gone = call.get("seen", {}) is None
    seen = "gone" if gone else " ".join(f"{name}{change:+d}" for name, change in changes(call).items())
    dma = [call["dma"]] if call.get("dma") else []
    return [call["call"], *(call[name] for name in COLUMNS[call["call"]]), seen, *dma]


def _call(kind: str, *values: Any) -> dict[str, Any]:
    columns = COLUMNS[kind]
    inputs, (seen, *dma) = values[: len(columns)], values[len(columns) :]
    words = (re.fullmatch(r"(\w+)([+-]\d+)", word) for word in seen.split())
    return {
        "call": kind,
        **dict(zip(columns, inputs, strict=True)),
        "seen": None if seen == "gone" else {change[1]: int(change[2]) for change in words if change},
        **({"dma": dma[0]} if dma else {}),
    }

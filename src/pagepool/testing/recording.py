# SPDX-License-Identifier: MIT
"""The calls that one page_pool of the kernel received, and what was seen of it after each: plain data, and its file.

Made by the recorder of the virtual machine's tests, replayed by `pagepool.testing.replay`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Recording", "load", "save"]


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
        `pagepool.testing.replay.SEEN` that changed, by how much.
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

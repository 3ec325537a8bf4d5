# SPDX-License-Identifier: MIT
"""Records the calls that page pools of this kernel receive, in order, with what is seen of the pool after each.

By function probes of tracefs, which read the pool's own fields; nothing is loaded into the kernel. Each call is seen
at its entry (for what the caller decided) and at its return (for what the pool did). The clock is a counter, so that
events have one order over all CPUs. Calls of one pool that overlap in time have no order: `record` refuses them, and
a workload must be made so that they do not happen.

The format is that of `pagepool.testing.replay`.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACING = Path("/sys/kernel/tracing")
BUFFER_KIB = 16384  # for each CPU
BIAS = 0x3FFFFFFFFFFFFFFF  # pool references that a page gets while it is carved
REFCOUNT_OFFSET, PP_REF_COUNT_OFFSET = 52, 40  # in struct page, 64 bit
SEEN = {
    "fast": "pool->alloc_stats.fast",
    "slow": "pool->alloc_stats.slow",
    "slow_high_order": "pool->alloc_stats.slow_high_order",
    "empty": "pool->alloc_stats.empty",
    "refill": "pool->alloc_stats.refill",
    "waive": "pool->alloc_stats.waive",
    "in_cache": "pool->alloc.count",
    "producer": "pool->ring.producer",
    "consumer": "pool->ring.consumer_head",
    "hold_cnt": "pool->pages_state_hold_cnt",
    "release_cnt": "pool->pages_state_release_cnt.counter",
}
_SEEN = " ".join(f"{name}={place}" for name, place in SEEN.items())
_CARVED = f"carved=pool->frag_page at=pool->frag_offset refs=+{PP_REF_COUNT_OFFSET}(pool->frag_page):s64"
PROBES = [
    "create page_pool_create_percpu%return pool=$retval order=params->order pool_size=params->pool_size "
    "nid=params->nid flags=params->flags",
    f"destroy_in page_pool_destroy pool=pool users=pool->user_cnt.refs.counter {_CARVED}",
    "alloc_in page_pool_alloc_netmems pool=pool",
    f"alloc page_pool_alloc_netmems%return pool=pool netmem=$retval {_SEEN}",
    f"frag_in page_pool_alloc_frag_netmem pool=pool size=size {_CARVED}",
    f"frag page_pool_alloc_frag_netmem%return pool=pool netmem=$retval offset=+0($arg2):u32 {_SEEN}",
    f"put_in page_pool_put_unrefed_netmem pool=pool netmem=netmem refs=+{REFCOUNT_OFFSET}($arg2):s32 "
    "direct=allow_direct:u8 cpuid=pool->cpuid napi=pool->p.napi list_owner=pool->p.napi->list_owner",
    f"put page_pool_put_unrefed_netmem%return pool=pool {_SEEN}",
    "bulk page_pool_put_netmem_bulk count=count",
    "nid page_pool_update_nid pool=pool new=new_nid",
]
TRACEPOINTS = [
    "hold page_pool.page_pool_state_hold pool=$pool netmem=$netmem count=$hold",
    "release page_pool.page_pool_state_release pool=$pool netmem=$netmem count=$release",
    "end page_pool.page_pool_release pool=$pool inflight=$inflight hold=$hold release=$release",
]
_LINE = re.compile(r"^.*-\d+\s+\[(\d+)\]\s+(\S{5})\s+(\d+): (\w+): (.*)$")
_VALUE = re.compile(r"(\w+)=(\S+)")


@dataclass
class Event:
    """One line of the trace."""

    cpu: int
    flags: str
    order: int
    name: str
    values: dict[str, Any]


@dataclass
class _Pool:
    params: dict[str, int]
    calls: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)  # netmem -> hold count under which it entered
    last: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    until: int = 0  # order of the last return
    last_frag: dict[str, Any] | None = None


class PoolRecorder:
    """Records every pool that is created while it is open; a context manager.

    Raises
    ------
    OSError
        This kernel has not all the probes.
    """

    def __enter__(self) -> PoolRecorder:
        (TRACING / "tracing_on").write_text("0")
        (TRACING / "trace_clock").write_text("counter")
        (TRACING / "buffer_size_kb").write_text(str(BUFFER_KIB))
        (TRACING / "trace").write_text("")
        for definition in PROBES:
            _define(f"f:pagepool/{definition}")
        for definition in TRACEPOINTS:
            _define(f"e:pagepool/{definition}")
        (TRACING / "events/pagepool/enable").write_text("1")
        (TRACING / "tracing_on").write_text("1")
        return self

    def __exit__(self, *_: object) -> None:
        (TRACING / "tracing_on").write_text("0")
        (TRACING / "events/pagepool/enable").write_text("0")
        for definition in [*PROBES, *TRACEPOINTS]:
            _define(f"-:pagepool/{definition.split()[0]}")

    def mark(self, name: str, stats: dict[str, int]) -> None:
        """Note what netlink says of the pool's counters at this point; nothing may be under way."""
        (TRACING / "trace_marker").write_text(json.dumps({"name": name, "stats": stats}))

    def events(self) -> list[Event]:
        """Return the trace so far.

        Raises
        ------
        RuntimeError
            Events were lost.
        """
        text = (TRACING / "trace").read_text()
        counts = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
        if counts is None or counts[1] != counts[2] or "LOST" in text:
            raise RuntimeError(f"events were lost: {counts and counts[0]}")
        found = []
        for line in text.splitlines():
            if match := _LINE.match(line):
                cpu, flags, order, name, rest = match.groups()
                values = {"json": rest} if name == "tracing_mark_write" else dict(_values(rest))
                found.append(Event(int(cpu), flags, int(order), name, values))
        return sorted(found, key=lambda event: event.order)


def recordings(events: list[Event]) -> list[dict[str, Any]]:
    """Return ``params`` and ``calls`` of every pool that was created in the trace, in that order.

    Raises
    ------
    RuntimeError
        Calls of one pool overlap.
    """
    pools: dict[int, _Pool] = {}
    done: list[_Pool] = []
    open_calls: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        values = event.values
        if event.name == "tracing_mark_write":
            for pool in pools.values():
                pool.calls.append({"call": "mark", **json.loads(values["json"])})
        elif event.name == "create":
            params = {name: values[name] for name in ("order", "pool_size", "nid")}
            pools[values["pool"]] = _Pool(params)
            done.append(pools[values["pool"]])
        elif event.name.endswith("_in") and event.name != "destroy_in":
            open_calls[event.cpu].append(event)
        elif event.name in ("alloc", "frag", "put"):
            entry = open_calls[event.cpu].pop()
            if entry.name != event.name + "_in":
                raise RuntimeError(f"{event.name} returned from {entry.name} at {event.order}")
            outer = open_calls[event.cpu][-1] if open_calls[event.cpu] else None
            carving = outer is not None and outer.name == "frag_in" and outer.values["pool"] == values.get("pool")
            if not carving and values["pool"] in pools:
                _take(pools[values["pool"]], entry, event)
        elif event.name in ("bulk", "nid"):
            raise RuntimeError(
                f"{event.name} at {event.order}: no driver here made this call when the recorder was written"
            )
        elif values.get("pool") in pools:
            _other(pools, event)
    return [{"params": pool.params, "calls": pool.calls} for pool in done]


def _take(pool: _Pool, entry: Event, event: Event) -> None:
    """Add one call, from its entry and its return."""
    if entry.order < pool.until:
        raise RuntimeError(f"{event.name} at {entry.order} overlaps with a call that ended at {pool.until}")
    pool.until = event.order
    call: dict[str, Any] = {"call": event.name, "cpu": event.cpu}
    if event.name == "alloc":
        call["page"] = pool.numbers[event.values["netmem"]]
    elif event.name == "frag":
        _close_frag(pool, entry)
        call |= {"size": entry.values["size"], "back": _back(entry), "takes_rest": 0}
        call |= {"page": pool.numbers[event.values["netmem"]], "offset": event.values["offset"]}
        pool.last_frag = call
    else:
        values = entry.values
        soft = entry.flags[0] in "bD" or entry.flags[2] in "sHZ"
        consumers = {values["cpuid"], values["list_owner"] if values["napi"] else -1}
        local = soft and entry.cpu in consumers
        call |= {
            "page": pool.numbers[values["netmem"]],
            "direct": int(values["direct"] or local),
            "refs": values["refs"],
        }
    call["seen"] = _changes(pool, event.values)
    pool.calls.append(call)


def _other(pools: dict[int, _Pool], event: Event) -> None:
    """A tracepoint, or the end of a pool."""
    pool, values = pools[event.values["pool"]], event.values
    if event.name == "hold":
        pool.numbers[values["netmem"]] = values["count"]
    elif event.name == "destroy_in" and values["users"] == 1:  # else an XDP registration gives its reference back
        _close_frag(pool, event)
        pool.calls.append({"call": "destroy", "back": _back(event), "seen": {}})
    elif event.name == "end":
        seen = {
            "release_cnt": values["release"],
            "hold_cnt": values["hold"],
            "in_cache": 0,
            "producer": 0,
            "consumer": 0,
        }
        pool.calls[-1]["seen"] = _changes(pool, {**pool.last, **seen})
        del pools[values["pool"]]


def _close_frag(pool: _Pool, entry: Event) -> None:
    """Say of the fragment before this call whether it took the rest of its page, now that it shows."""
    last = pool.last_frag
    if last and entry.values["carved"] and entry.values["at"] > last["offset"] + last["size"]:
        last["takes_rest"] = 1


def _back(entry: Event) -> int:
    """Return how many fragments of the page being carved have been put so far."""
    return BIAS - entry.values["refs"] if entry.values["carved"] else 0


def _changes(pool: _Pool, values: dict[str, int]) -> dict[str, int]:
    now = {name: values[name] for name in SEEN if name not in ("producer", "consumer")}
    now["in_ring"] = values["producer"] - values["consumer"]
    changes = {name: value - pool.last[name] for name, value in now.items() if value != pool.last[name]}
    pool.last.update(now)
    return changes


def _values(text: str) -> Iterator[tuple[str, Any]]:
    for name, value in _VALUE.findall(text):
        yield name, int(value, 0) if value != "(fault)" else -1


def _define(text: str) -> None:
    """Make or remove one event; an error names the definition and what tracefs has against it."""
    fd = os.open(TRACING / "dynamic_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode() + b"\n")
    except OSError as error:
        why = (TRACING / "error_log").read_text().strip().splitlines()[-3:]
        raise OSError(error.errno, f"{text}: {why}") from None
    finally:
        os.close(fd)

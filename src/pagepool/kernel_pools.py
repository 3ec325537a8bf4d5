# SPDX-License-Identifier: MIT
"""The kernel's own page pools, as netlink shows them: which there are, what they hold, and the same eleven counters.

This is the other end of the yardstick: `PoolStats.kernel` of ours and `KernelPool.stats` of theirs have the same keys.
A pool is shown only if its driver named a net device for it; counters only if the kernel was built with
``CONFIG_PAGE_POOL_STATS``. Needs no library, and no privilege beyond seeing the interface.

Source: ``Documentation/netlink/specs/netdev.yaml`` (operations page-pool-get and page-pool-stats-get).
"""

from __future__ import annotations

import errno
import socket
from dataclasses import asdict, dataclass, field
from typing import Any

from pagepool import netlink
from pagepool.errors import NotSupportedError

_FEATURE = "a look at the kernel's page pools"
_PAGE_POOL_GET = 5
_PAGE_POOL_STATS_GET = 9
_FIELDS = {1: "id", 2: "ifindex", 3: "napi-id", 4: "inflight", 5: "inflight-mem", 6: "detach-time"}
_COUNTERS = (
    "alloc-fast",
    "alloc-slow",
    "alloc-slow-high-order",
    "alloc-empty",
    "alloc-refill",
    "alloc-waive",
    "recycle-cached",
    "recycle-cache-full",
    "recycle-ring",
    "recycle-ring-full",
    "recycle-released-refcnt",
)
_FIRST_COUNTER = 8


@dataclass(frozen=True, slots=True)
class KernelPool:
    """One page pool of the kernel.

    Parameters
    ----------
    id : int
        The kernel's number for it, cyclic from 1.
    ifindex : int
        Its net device; 0 where that is gone or in another namespace.
    ifname : str
        Name of the device, empty where there is none.
    napi_id : int
        The NAPI that consumes it; 0 where it is not tied to one.
    inflight : int
        Objects not yet back at the page allocator, idle ones included.
    inflight_mem : int
        The same in bytes.
    detach_time : int or None
        Seconds since boot when it was destroyed with pages still out; ``None`` while it lives.
    stats : dict
        The eleven counters by netlink's names; empty where the kernel does not count.
    """

    id: int
    ifindex: int = 0
    ifname: str = ""
    napi_id: int = 0
    inflight: int = 0
    inflight_mem: int = 0
    detach_time: int | None = None
    stats: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self)


def has_stats() -> bool:
    """Whether this kernel counts (``CONFIG_PAGE_POOL_STATS``)."""
    try:
        _dump(_PAGE_POOL_STATS_GET)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


def kernel_pools() -> list[KernelPool]:
    """List the page pools of the calling thread's network namespace, by id.

    Raises
    ------
    NotSupportedError
        The kernel's netlink family ``netdev`` is missing (before 6.7) or lists no page pools (before 6.8).

    Notes
    -----
    Context: any thread; two netlink dumps.
    """
    counters: dict[int, dict[str, int]] = {}
    try:
        for attrs in _dump(_PAGE_POOL_STATS_GET):
            info = netlink.attributes(attrs[1])
            counters[netlink.number(info[1])] = {
                name: netlink.number(attrs[_FIRST_COUNTER + i])
                for i, name in enumerate(_COUNTERS)
                if _FIRST_COUNTER + i in attrs
            }
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    found = []
    for attrs in _dump(_PAGE_POOL_GET):
        values = {name: netlink.number(attrs[kind]) for kind, name in _FIELDS.items() if kind in attrs}
        found.append(
            KernelPool(
                id=values["id"],
                ifindex=values.get("ifindex", 0),
                ifname=_name(values.get("ifindex", 0)),
                napi_id=values.get("napi-id", 0),
                inflight=values.get("inflight", 0),
                inflight_mem=values.get("inflight-mem", 0),
                detach_time=values.get("detach-time"),
                stats=counters.get(values["id"], {}),
            )
        )
    return sorted(found, key=lambda pool: pool.id)


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except (OSError, OverflowError):
        return ""


def _dump(command: int) -> list[netlink.Attributes]:
    try:
        return netlink.dump("netdev", command)
    except FileNotFoundError:
        raise NotSupportedError(_FEATURE, "the netlink family netdev (Linux 6.7 or newer)") from None
    except OSError as error:
        if command != _PAGE_POOL_GET or error.errno != errno.EOPNOTSUPP:
            raise
        raise NotSupportedError(_FEATURE, "a kernel that lists its page pools (Linux 6.8 or newer)") from None

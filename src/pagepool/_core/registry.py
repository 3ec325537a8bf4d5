# SPDX-License-Identifier: MIT
"""Which pools there are: what netlink's ``page-pool-get`` answers for the kernel's.

Pools are listed while they live; a closed pool with pages out is listed as detached. Subscribers hear ``add``,
``change`` and ``del``, as on netlink's multicast group ``page-pool``.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

_lock = threading.Lock()
_ids = itertools.count(1)
_pools: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_subscribers: list[Callable[[str, int], None]] = []


def add(pool: Any) -> int:
    """Enter a pool; return its id, cyclic from 1 as the kernel's."""
    with _lock:
        pool_id = next(_ids) & 0xFFFFFFFF or next(_ids)
        _pools[pool_id] = pool
    notify("add", pool_id)
    return pool_id


def notify(event: str, pool_id: int) -> None:
    """Tell the subscribers."""
    for subscriber in tuple(_subscribers or ()):  # None while the interpreter takes its modules down
        subscriber(event, pool_id)


def pools() -> list[Any]:
    """Return every pool of this process, by id: alive ones, and closed ones whose pages are still out."""
    with _lock:
        found = sorted(_pools.items())
    return [pool for _, pool in found if not pool.closed or pool.inflight]


def subscribe(callback: Callable[[str, int], None]) -> Callable[[], None]:
    """Call `callback` with ``"add"``, ``"change"`` or ``"del"`` and the pool's id; the result ends it."""
    _subscribers.append(callback)

    def unsubscribe() -> None:
        if callback in _subscribers:
            _subscribers.remove(callback)

    return unsubscribe

# SPDX-License-Identifier: MIT
"""What the tests of `AfXdpQueue` share: frames for a veth pair, and how to drain a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.testing.frames import udp_frame
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

SMALL: dict[str, Any] = {"rx_ring": 256, "tx_ring": 256}


def frame_to_near(veth: VethPair, **fields: Any) -> bytes:
    """Return a UDP frame from the far end to the near end."""
    far, near = veth.far, veth.near
    return udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4, **fields)


def take(
    queue: AfXdpQueue, count: int, judge: Callable[[XdpBatch], object] = XdpBatch.drop, timeout: float = 3.0
) -> list[bytes]:
    """Poll until `count` frames came or `timeout` seconds passed; return their bytes."""
    frames: list[bytes] = []
    deadline = time.monotonic() + timeout
    while len(frames) < count and time.monotonic() < deadline:
        batch = queue.poll()
        if batch is None:
            queue.napi.wait(0.05)
            continue
        with batch:
            frames += [bytes(batch.frame(i)) for i in range(len(batch))]
            judge(batch)
    return frames


def settled(queue: AfXdpQueue, timeout: float = 2.0) -> bool:
    """Poll until every sent page is home; return whether that happened."""
    deadline = time.monotonic() + timeout
    while queue.stats().rings.nr_tx_outstanding and time.monotonic() < deadline:
        queue.poll()
    return queue.stats().rings.nr_tx_outstanding == 0


@contextmanager
def two_wires(nr_queues: int = 1) -> Iterator[tuple[VethPair, VethPair]]:
    """Two veth pairs whose near ends, ``near`` and ``other``, are in one namespace; the block is inside it."""
    with (
        VethPair(nr_queues=nr_queues, gro=True) as first,
        VethPair(nr_queues=nr_queues, gro=True, near_name="other", near_ns=first.near.ns) as second,
        first.near.ns,
    ):
        yield first, second

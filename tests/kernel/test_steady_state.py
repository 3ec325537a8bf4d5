# SPDX-License-Identifier: MIT
"""The seeds' promise: once warm, a pool as large as its rings allocates nothing and maps nothing any more.

Over a million received frames the page allocator is not called, no page is mapped, and no page enters or
leaves.
"""

from __future__ import annotations

import pytest
from queues import frame_to_near

from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

MILLION = 1_000_000
RING, BUDGET = 1024, 256


def judge_none_or_tx(every: int, batch: XdpBatch) -> None:
    batch.drop()
    if every:
        batch.tx(slice(0, None, every))


@pytest.mark.parametrize("send_every", [0, 16])
def test_a_million_frames_without_the_page_allocator(veth: VethPair, send_every: int) -> None:
    with AfXdpQueue("near", rx_ring=RING, tx_ring=RING) as queue:
        # The fill ring has its pages; now those that the rx ring, the tx ring and a batch can hold besides.
        queue.pool.put_bulk(queue.pool.alloc_bulk(2 * RING + BUDGET))
        with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
            generator.start()
            received = 0
            for batch in queue.poll_forever(budget=BUDGET, timeout=5):  # warm: both directions at once
                judge_none_or_tx(send_every, batch)
                received += len(batch)
                if received > MILLION // 10:
                    break
            before, arena = queue.pool.stats(), queue.pool.arena
            calls, free = arena.alloc_calls, arena.free_calls
            received = 0
            for batch in queue.poll_forever(budget=BUDGET, timeout=5):
                judge_none_or_tx(send_every, batch)
                received += len(batch)
                if received >= MILLION:
                    break
            generator.stop()
        after = queue.pool.stats()
        assert received >= MILLION
        assert (arena.alloc_calls, arena.free_calls) == (calls, free)
        assert (after.slow, after.maps, after.unmaps) == (before.slow, before.maps, before.unmaps)
        assert (after.hold_cnt, after.release_cnt) == (before.hold_cnt, before.release_cnt)
        assert after.recycled - before.recycled >= MILLION - 2 * BUDGET  # a batch is out at either end
        assert after.ring_full == after.rejected == 0
        queue.pool.check()
    assert queue.pool.lent == 0

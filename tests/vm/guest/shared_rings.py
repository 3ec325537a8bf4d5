# SPDX-License-Identifier: MIT
"""A process of the host as consumer of a pool in the guest: descriptors and returns go through rings in ivshmem memory.

The rings, the books and the checks are those of `pagepool.shared`; what lacks is the socket, so both sides poll. Frames
come from the wire into pages of the shared memory by the igb's DMA, `redirect` lends them to the host, the host reads
them where they lie and gives the pages back, and the NIC fills them again: nobody copies a byte.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagepool import DmaDir, PagePool, PPFlag
from pagepool._core.arena import Arena
from pagepool.dma import VfioDevice
from pagepool.drivers.vfio import VfioQueue, open_queues
from pagepool.shared._lender import Lender, Link

from .shared_memory import FRAMES, HEADROOM, MAX_BYTES, NIC, SEED, SLAB_BYTES, SharedMemory
from .support import host
from .support.frames import make_frame
from .support.plan import device

BOOTS = ("newest", "oldest")
SLOTS = 64
ROUNDS = 4


class Host:
    """The consumer as a redirect target."""

    def __init__(self, lender: Lender, link: Link) -> None:
        self.lender = lender
        self.link = link

    def xdp_xmit(self, source: Any, ids: Any, lengths: Any, offsets: Any) -> int:
        return self.lender.lend((self.link,), source, ids, lengths, offsets, 0, None)

    def xdp_flush(self) -> None:
        self.link.reap()


@contextmanager
def nic_and_host() -> Iterator[tuple[PagePool, VfioQueue, Host]]:
    """Open the NIC with a pool over the first half of the shared memory; the rings are in the second."""
    memory = SharedMemory()
    whole = memory.arena
    memory.arena = Arena(whole.base_vaddr, 1)
    memory.arena.add_slab(0, 0)
    lender = Lender(memory.arena)
    link = Link(lender, whole.base_vaddr + SLAB_BYTES, SLOTS, -1, whole)
    with (
        VfioDevice(device(NIC).bdf, bind=True) as vfio,
        PagePool(
            flags=PPFlag.DMA_MAP,
            dev=vfio,
            dma_dir=DmaDir.BIDIRECTIONAL,
            offset=HEADROOM,
            max_len=2048,
            zero=True,
            memory=memory,
        ) as pool,
    ):
        (queue,) = open_queues(device(NIC).bdf, device=vfio, pools=[pool], memory="anonymous", interrupts=False)
        with queue:
            try:
                yield pool, queue, Host(lender, link)
            finally:
                link.recall()


def redirect(queue: VfioQueue, to: Host, count: int) -> int:
    """Lend `count` frames to the host; return how many came in 60 s."""
    done, deadline = 0, time.monotonic() + 60
    while done < count and time.monotonic() < deadline:
        batch = queue.poll()
        if batch is not None:
            batch.redirect(to)
            done += len(batch)
            batch.complete()
    return done


def wait_for_returns(to: Host) -> int:
    """Bring pages home until none is out, or for 60 s; return how many are."""
    deadline = time.monotonic() + 60
    while to.link.outstanding and time.monotonic() < deadline:
        to.link.reap()
    return to.link.outstanding


def test_the_host_borrows_what_the_nic_receives() -> None:
    station = bytes.fromhex(device(NIC).mac.replace(":", ""))
    with nic_and_host() as (pool, queue, to):
        for round_ in range(ROUNDS):
            seed = SEED + round_
            call = host.borrow(SLAB_BYTES, SLAB_BYTES, FRAMES)
            host.send(NIC, FRAMES, seed=seed, max_bytes=MAX_BYTES).result()
            assert redirect(queue, to, FRAMES) == FRAMES
            answer = call.result()
            frames = [make_frame(i, seed=seed, destination=station, max_bytes=MAX_BYTES) for i in range(FRAMES)]
            assert answer["crcs"] == [zlib.crc32(frame) for frame in frames], f"round {round_}"
            assert (answer["given"], answer["lent"], answer["bad"]) == (FRAMES, 0, 0), answer
            assert wait_for_returns(to) == 0
            to.lender.check()
            pool.check()
            # The next round's host begins where the rings begin.
            to.link.recall()
            to.link = Link(to.lender, pool.arena.base_vaddr + SLAB_BYTES, SLOTS, -1, to.link)
        print(f"{ROUNDS * FRAMES} frames lent to the host and given back through rings in the shared memory")


def test_a_host_that_never_gives_back_is_recalled() -> None:
    with nic_and_host() as (pool, queue, to):
        host.send(NIC, FRAMES, seed=SEED, max_bytes=MAX_BYTES).result()
        assert redirect(queue, to, FRAMES) == FRAMES
        assert (to.link.outstanding, len(to.link.held_ids())) == (FRAMES, FRAMES)
        before = pool.lent
        assert to.link.recall() == FRAMES
        assert pool.lent == before - FRAMES
        to.lender.check()
        pool.check()


def test_what_the_host_writes_into_the_rings_is_checked() -> None:
    with nic_and_host() as (pool, queue, to):
        host.send(NIC, FRAMES, seed=SEED, max_bytes=MAX_BYTES).result()
        assert redirect(queue, to, FRAMES) == FRAMES
        returns = SLAB_BYTES + 4096 + SLOTS * 32
        mine = to.link.held_ids()[0]
        ids = [mine, mine, 0xFFFFFFFF, 512, next(i for i in range(512) if i not in to.link.held_ids())]
        host.write_shared(returns, b"".join(page_id.to_bytes(4, "little") for page_id in ids))
        host.write_shared(SLAB_BYTES + 640, len(ids).to_bytes(4, "little"))
        assert to.link.reap() == 1
        assert (to.link.bad_ids, to.link.bad_returns, to.link.outstanding) == (2, 2, FRAMES - 1)
        host.write_shared(SLAB_BYTES + 640, (1 << 31).to_bytes(4, "little"))
        assert to.link.reap() == 0
        assert to.link.bad_indexes == 1
        to.lender.check()
        pool.check()

# SPDX-License-Identifier: MIT
"""Received traffic in another process, with no copy: the UMEM is the shared arena, `redirect` hands frames on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from queues import SMALL, frame_to_near

import pagepool as pp
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.errors import PagePoolError
from pagepool.shared import SharedPool
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

PATIENCE_S = 10.0
ZEROED = pp.PagePoolParams(zero=True)

READER = """
    import sys, numpy as np, pagepool
    frames = exact = 0
    wanted = np.frombuffer(bytes.fromhex(sys.argv[2]), np.uint8)
    with pagepool.attach(int(sys.argv[1])) as queue:
        for batch in queue.poll_forever(256):
            frames += len(batch)
            rows = np.asarray(batch.headers(len(wanted)))
            exact += int((rows == wanted).all(axis=1).sum()) if (batch.lengths == len(wanted)).all() else 0
        print(frames, exact, queue.pool.memory.is_read_only, flush=True)
"""


@contextmanager
def reader(shared: SharedPool, frame: bytes) -> Iterator[subprocess.Popen[str]]:
    theirs = shared.connect()
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(READER), str(theirs.fileno()), frame.hex()],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        theirs.close()
        try:
            assert shared.wait_for_consumers(1, PATIENCE_S)
            yield child
        finally:
            child.kill()


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    "kind", ["memfd", pytest.param("memfd_hugetlb", marks=pytest.mark.needs_hugetlb)], ids=["4 KiB", "2 MiB"]
)
def test_received_frames_are_read_by_another_process_where_they_lie(veth: VethPair, kind: str) -> None:
    frame = frame_to_near(veth, payload=b"not copied " * 10)
    total = 6_000
    with (
        AfXdpQueue("near", 0, memory=kind, params=ZEROED, **SMALL) as queue,
        SharedPool(queue.pool, max_pages=512) as shared,
        reader(shared, frame) as child,
        LiveGenerator(veth.far, frame) as generator,
    ):
        (consumer,) = shared.consumers
        received = 0
        while received < total:
            generator.send(200)
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline and received < total:
                batch = queue.poll()
                if batch is None:
                    queue.napi.wait(0.01)
                    if consumer.link.outstanding == 0:
                        break
                    continue
                received += len(batch)
                consumer.wait_for_room(len(batch), PATIENCE_S)
                batch.redirect(consumer)
                batch.complete()
        eventually(lambda: shared.reap() == 0 and consumer.link.outstanding == 0)
        assert queue.xdp_stats.redirect == received
        assert queue.xdp_stats.redirect_dropped == 0
        # No byte was copied: pages by the thousand went to the reader and came home, none was taken anew.
        stats = consumer.stats()
        assert (stats.sent, stats.returned, stats.recalled) == (received, received, 0)
        assert queue.pool.stats().maps == 1
        memory = queue.pool.memory.stats()
        assert (memory.free_calls, memory.pages_allocated <= queue.pool.arena.nr_pages) == (0, True)
        shared.check()
        shared.close(PATIENCE_S)
        assert child.stdout is not None
        assert child.stdout.readline().split() == [str(received), str(received), "True"]


def test_the_page_that_the_kernel_filled_is_the_page_the_consumer_reads(veth: VethPair) -> None:
    """By identity: the same id, and what is written to the page here afterwards is seen there."""
    frame = frame_to_near(veth)
    with (
        AfXdpQueue("near", 0, memory="memfd", params=ZEROED, **SMALL) as queue,
        SharedPool(queue.pool) as shared,
        pp.attach(shared.connect()) as attached,
        LiveGenerator(veth.far, frame) as generator,
    ):
        assert shared.wait_for_consumers(1, PATIENCE_S)
        generator.send(8)
        for batch in queue.poll_forever(timeout=PATIENCE_S):
            ids, offsets = batch.ids.tolist(), batch.offsets.tolist()
            batch.redirect(shared)
            break
        batch.complete()
        got = next(attached.poll_forever(timeout=PATIENCE_S))
        assert (got.ids.tolist(), got.offsets.tolist()) == (ids, offsets)
        assert bytes(got.frame(0)) == frame
        here = np.frombuffer(queue.pool.memory.view(), np.uint8)
        here[(ids[0] << 12) + offsets[0]] ^= 0xFF
        assert bytes(got.frame(0)) == bytes([frame[0] ^ 0xFF]) + frame[1:]
        got.complete()
        eventually(lambda: not shared.holders())


def test_a_consumer_that_is_killed_gives_the_nic_its_pages_back(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    hoard = "import sys, pagepool\nq = pagepool.attach(int(sys.argv[1]))\nk = []\n"
    hoard += "for b in q.poll_forever(): k += b.keep()"
    with (
        AfXdpQueue("near", 0, frames=1024, memory="memfd", params=ZEROED, **SMALL) as queue,
        SharedPool(queue.pool) as shared,
        LiveGenerator(veth.far, frame) as generator,
    ):
        lent_at_rest = queue.pool.lent
        for _ in range(3):
            theirs = shared.connect()
            with subprocess.Popen(
                [sys.executable, "-c", hoard, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            ) as child:
                theirs.close()
                assert shared.wait_for_consumers(1, PATIENCE_S)
                taken = 0
                while taken < 300:
                    generator.send(50)
                    for batch in queue.poll_forever(timeout=0.1):
                        taken += len(batch)
                        batch.redirect(shared)
                assert shared.holders()[0].count == taken
                assert shared.holders()[0].pid == child.pid
                child.kill()
            assert shared.wait_until_gone(PATIENCE_S)
            assert queue.pool.lent <= lent_at_rest + 64
            shared.check()
        assert shared.stats().lost >= 900


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_two_queues_of_one_umem_share_with_one_consumer(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    with (
        AfXdpQueue("near", 0, memory="memfd", params=ZEROED, **SMALL) as first,
        AfXdpQueue("near", 1, share_umem_with=first, params=ZEROED, **SMALL) as second,
        SharedPool([first.pool, second.pool]) as shared,
        pp.attach(shared.connect()) as attached,
    ):
        assert shared.wait_for_consumers(1, PATIENCE_S)
        seen = {0: 0, 1: 0}
        for cpu in sorted(os.sched_getaffinity(0))[:2]:  # on veth the sender's CPU decides the queue
            with LiveGenerator(veth.far, frame, cpu=cpu) as generator:
                generator.send(20)
            queue = (first, second)[cpu % 2]
            for batch in queue.poll_forever(timeout=1.0):
                batch.redirect(shared)
                seen[queue.queue] += len(batch)
                if seen[queue.queue] >= 20:
                    break
            queue.poll()
        total = sum(seen.values())
        got: list[int] = []
        for lent in attached.poll_forever(timeout=PATIENCE_S):
            assert bytes(lent.frame(0)) == frame
            got += lent.queues.tolist()
            if len(got) == total:
                break
        attached.poll()
        assert (got.count(0), got.count(1)) == (seen[0], seen[1])
        eventually(lambda: not shared.holders())
        shared.check()
        # A third pool's frames in this memory would be read by every consumer, without anybody having said so.
        with pytest.raises(PagePoolError, match="shared with other processes"):
            pp.PagePool(memory=first.pool.memory)


def test_closing_the_queue_first(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    queue = AfXdpQueue("near", 0, memory="memfd", params=ZEROED, **SMALL)
    with SharedPool(queue.pool) as shared, pp.attach(shared.connect()) as attached:
        assert shared.wait_for_consumers(1, PATIENCE_S)
        with LiveGenerator(veth.far, frame) as generator:
            generator.send(20)
            seen = 0
            for batch in queue.poll_forever(timeout=0.5):
                seen += len(batch)
                batch.redirect(shared)
        queue.close()
        with next(attached.poll_forever(timeout=PATIENCE_S)) as batch:
            assert bytes(batch.frame(0)) == frame  # the memory outlives the queue
        while attached.poll() is not None:
            pass
        eventually(lambda: queue.pool.lent == 0)
        shared.check()

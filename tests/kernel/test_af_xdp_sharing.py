# SPDX-License-Identifier: MIT
"""Several queues: one program, one UMEM or several, frames redirected between them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from queues import SMALL, frame_to_near, settled, take

from pagepool.drivers.af_xdp import AfXdpQueue, QueueClosedError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

two_queues = pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)


@pytest.fixture
def second_pair() -> Iterator[VethPair]:
    with VethPair() as pair:
        yield pair


@two_queues
@pytest.mark.parametrize("share", [True, False])
def test_two_queues_of_one_interface(veth: VethPair, share: bool) -> None:
    frame = frame_to_near(veth)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    with (
        AfXdpQueue("near", 0, **SMALL) as first,
        AfXdpQueue("near", 1, share_umem_with=first if share else None, **SMALL) as second,
    ):
        queues = (first, second)
        for cpu in cpus:  # on veth the sender's CPU decides the queue
            with LiveGenerator(veth.far, frame, cpu=cpu) as generator:
                generator.send(100)
            assert take(queues[cpu % 2], 100) == [frame] * 100
        assert (first.pool.arena is second.pool.arena) is share
        assert first.pool.stats().maps == 1
        assert first.stats().steering.redirected == 100 * len(cpus)
        for queue in queues:
            queue.pool.check()
    assert first.pool.lent == second.pool.lent == 0


@two_queues
def test_the_sharer_outlives_the_first(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    cpu = max(os.sched_getaffinity(0))
    first = AfXdpQueue("near", 1 - cpu % 2, **SMALL)
    second = AfXdpQueue("near", cpu % 2, share_umem_with=first, **SMALL)
    first.close()
    with LiveGenerator(veth.far, frame, cpu=cpu) as generator:
        for _ in range(10):
            generator.send(100)
            assert len(take(second, 100)) == 100
    with pytest.raises(QueueClosedError):
        AfXdpQueue("near", 1 - cpu % 2, share_umem_with=first, **SMALL)
    second.close()
    assert first.pool.inflight == second.pool.inflight == 0


@pytest.mark.parametrize("share", [True, False])
def test_redirect_to_another_interface(veth: VethPair, second_pair: VethPair, share: bool) -> None:
    """near -> (redirect) -> the second pair's near end -> its far end; with one UMEM nothing is copied."""
    frame = frame_to_near(veth, length=300)
    with AfXdpQueue("near", **SMALL) as source, LiveGenerator(veth.far, frame) as generator:
        with second_pair.near.ns:
            target = AfXdpQueue("near", share_umem_with=source if share else None, **SMALL)
        with second_pair.far.ns:
            sink = AfXdpQueue("far", **SMALL)
        with target, sink:
            for _ in range(5):
                generator.send(200)
                taken = take(source, 200, lambda batch: batch.redirect(target))
                assert len(taken) == 200
                assert take(sink, 200) == [frame] * 200
            assert settled(target)
            assert source.stats().xdp.redirect == 1000
            assert source.stats().xdp.redirect_dropped == 0
            assert target.stats().rings.copied == (0 if share else 1000)
            assert target.stats().rings.tx_completed == 1000
            assert target.stats().rings.bad_descriptors == 0
            source.pool.check()
            target.pool.check()
    for queue in (source, target, sink):
        assert queue.pool.lent == 0
        queue.pool.check()


def test_a_closed_target_drops(veth: VethPair, second_pair: VethPair) -> None:
    with AfXdpQueue("near", **SMALL) as source, LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        with second_pair.near.ns:
            target = AfXdpQueue("near", share_umem_with=source, **SMALL)
        target.close()
        generator.send(10)
        assert len(take(source, 10, lambda batch: batch.redirect(target))) == 10
        assert source.stats().xdp.redirect_dropped == 10
    assert source.pool.lent == 0


def test_a_target_that_nobody_polls_does_not_jam(veth: VethPair, second_pair: VethPair) -> None:
    """Far more frames than the target's rings hold, and only the source is polled."""
    with AfXdpQueue("near", **SMALL) as source, LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        with second_pair.near.ns:
            target = AfXdpQueue("near", share_umem_with=source, **SMALL)
        with target:
            for _ in range(10):
                generator.send(200)
                assert len(take(source, 200, lambda batch: batch.redirect(target))) == 200
            assert source.stats().xdp.redirect_dropped == 0
    assert source.pool.lent == 0

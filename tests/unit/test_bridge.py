# SPDX-License-Identifier: MIT
"""The bridge on the loopback NIC: bytes, counts, and a state machine that stops, closes and jams either side."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pagepool.drivers.bridge import Bridge
from pagepool.drivers.loopback import LoopbackNic
from pagepool.xdp import XdpBatch


def numbered(first: int, n: int) -> list[bytes]:
    return [number.to_bytes(4, "big") * 16 for number in range(first, first + n)]


def test_both_ways_in_order_and_unchanged() -> None:
    wires: list[list[bytes]] = [[], []]
    with LoopbackNic(1, wire=wires[0], name="a") as left, LoopbackNic(1, wire=wires[1], name="b") as right:
        bridge = Bridge(left.queue(0), right.queue(0))
        assert repr(bridge) == "<Bridge a queue 0 - b queue 0>"
        bridge.poll()  # posts buffers
        sent = numbered(0, 200), numbered(1000, 150)
        left.inject(sent[0])
        right.inject(sent[1])
        while bridge.poll():
            pass
        assert wires == [sent[1], sent[0]]
        stats = bridge.stats()
        assert (stats.a_to_b.received, stats.a_to_b.forwarded, stats.b_to_a.forwarded) == (200, 200, 150)
        assert stats.as_dict()["a_to_b"] == {
            "received": 200,
            "forwarded": 200,
            "refused": 0,
            "judged": 0,
            "copied": 0,
        }


def test_a_run_ends_with_its_sources() -> None:
    wires: list[list[bytes]] = [[], []]
    frames = numbered(0, 5000), numbered(9000, 3000)
    with (
        LoopbackNic(1, frames[0], wire=wires[0], name="a") as left,
        LoopbackNic(1, frames[1], wire=wires[1], name="b") as right,
    ):
        assert Bridge([left.queue(0)], [right.queue(0)]).run() == 8000
    assert wires == [frames[1], frames[0]]


def test_more_queues_on_one_side_than_on_the_other() -> None:
    """Each of three queues has a counterpart; the one of the other side has the first of them."""
    with LoopbackNic(3, name="a") as left, LoopbackNic(1, name="b") as right:
        bridge = Bridge([left.queue(index) for index in range(3)], right.queue(0))
        bridge.poll()
        flows = [bytes(12) + b"\x08\x00" + b"\x45" + bytes(11) + bytes([n, 2, 3, 4, 5, 6, 7, 8]) for n in range(60)]
        taken = left.inject(flows)
        while bridge.poll():
            pass
        assert bridge.stats().a_to_b.forwarded == taken > 0
        assert right.ports[0].stats.tx_frames == taken


def test_a_judge_that_drops() -> None:
    wire: list[bytes] = []
    with LoopbackNic(1, name="a") as left, LoopbackNic(1, wire=wire, name="b") as right:

        def judge(batch: XdpBatch) -> None:
            batch.drop(batch.headers(4).field(0, ">u4") % 2 == 1)

        bridge = Bridge(left.queue(0), right.queue(0), judge)
        bridge.poll()
        left.inject(numbered(0, 100))
        while bridge.poll():
            pass
        assert wire == numbered(0, 100)[::2]
        way = bridge.stats().a_to_b
        assert (way.received, way.forwarded, way.judged) == (100, 50, 50)


def test_sides_that_are_no_sides() -> None:
    with LoopbackNic(2) as nic:
        queues = [nic.queue(0), nic.queue(1)]
        for a, b in (([], queues), (queues, []), (queues, queues[0]), ([queues[0], queues[0]], queues[1])):
            with pytest.raises(ValueError, match=r"either side|both sides"):
                Bridge(a, b)


class BridgeMachine(RuleBasedStateMachine):
    """Frames come on either side; either wire stands still and goes on; either queue is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.nics = [LoopbackNic(1, name=name, rx_ring=32, tx_ring=16) for name in "ab"]
        self.queues = [nic.queue(0) for nic in self.nics]
        self.bridge = Bridge(*self.queues)
        self.numbers = itertools.count()
        self.came = [0, 0]
        self.poll()

    @rule(side=st.integers(0, 1), n=st.integers(1, 40))
    def frames_come(self, side: int, n: int) -> None:
        if not self.queues[side].closed:
            self.came[side] += self.nics[side].inject(numbered(next(self.numbers), n))

    @rule(side=st.integers(0, 1), still=st.booleans())
    def wire(self, side: int, still: bool) -> None:
        port = self.nics[side].ports[0]
        port.tx_paused = still
        if not still:
            port.transmit()

    @rule(budget=st.sampled_from([1, 7, 64]))
    def poll(self, budget: int = 64) -> None:
        if not any(queue.closed for queue in self.queues):
            self.bridge.poll(budget)
            return
        for queue, handler in zip(self.queues, self.bridge.handlers, strict=True):
            if not queue.closed and (batch := queue.poll(budget)) is not None:
                with batch:
                    handler(batch)

    @rule(side=st.integers(0, 1))
    def close(self, side: int) -> None:
        if any(queue.closed for queue in self.queues):
            return  # one goes on alone
        self.queues[side].close()

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        stats = self.bridge.stats()
        for way, came, queue in zip((stats.a_to_b, stats.b_to_a), self.came, self.queues, strict=True):
            assert way.received == way.forwarded + way.refused
            assert way.received <= came
            queue.pool.check()

    def teardown(self) -> None:
        for port in (nic.ports[0] for nic in self.nics):
            port.tx_paused = False
        for queue in self.queues:
            queue.close()
        for queue in self.queues:
            assert queue.pool.lent == 0
            queue.pool.check()


TestBridgeMachine = BridgeMachine.TestCase
TestBridgeMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

# SPDX-License-Identifier: MIT
"""When each frame came: written before it by the steering program, on its CPU, and read from the page."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np
import pytest
from queues import SMALL, frame_to_near, take

from pagepool.drivers.af_xdp import AfXdpQueue, StampedBatch
from pagepool.integrations.arrow import to_arrow
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import DeadBatchError, XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]


def stamps_of(queue: AfXdpQueue, count: int) -> Any:
    """Take `count` frames; return their timestamps in the order in which they came."""
    stamps: list[Any] = []

    def look(batch: XdpBatch) -> None:
        assert isinstance(batch, StampedBatch)
        stamps.append(batch.timestamps_ns)

    assert len(take(queue, count, look)) == count
    return np.concatenate(stamps)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_each_frame_has_the_time_at_which_it_came(veth: VethPair, mode: Any) -> None:
    veth.near.set_gro(mode == "generic")
    frame = frame_to_near(veth)
    with (
        AfXdpQueue("near", mode=mode, timestamps=True, **SMALL) as queue,
        LiveGenerator(veth.far, frame) as generator,
    ):
        before = []
        for _ in range(3):
            before.append(time.monotonic_ns())
            generator.send(20)
            time.sleep(0.01)  # the poll comes later
        came = stamps_of(queue, 60)
        assert came.tolist() == sorted(came.tolist())
        assert len(set(came.tolist())) > 3  # each its own, not the poll's, nor the system call's
        assert (came.reshape(3, 20)[:, 0] > before).all()
        assert came[-1] < time.monotonic_ns()


def test_the_stack_gets_its_frames_as_ever(veth: VethPair) -> None:
    with veth.near.ns:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((veth.near.ipv4, 4000))
        listener.settimeout(2)
    with (
        listener,
        AfXdpQueue("near", filter="udp dst port 53", timestamps=True, **SMALL) as queue,
        LiveGenerator(veth.far, frame_to_near(veth, dst_port=4000, payload=b"to the stack")) as others,
        LiveGenerator(veth.far, frame_to_near(veth, dst_port=53)) as wanted,
    ):
        others.send(1)
        assert listener.recv(100).startswith(b"to the stack")
        wanted.send(5)
        assert (stamps_of(queue, 5) > 0).all()


def test_a_frame_that_is_passed_or_moved(veth: VethPair) -> None:
    with veth.near.ns:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((veth.near.ipv4, 4000))
        listener.settimeout(2)
    frame = frame_to_near(veth, dst_port=4000, payload=b"passed")
    seen: list[bool] = []

    def look(batch: XdpBatch) -> None:
        assert batch.timestamps_ns is not None
        before = batch.timestamps_ns.tolist()
        batch.adjust_head(14)
        seen.append(batch.timestamps_ns.tolist() == before)
        batch.adjust_head(-14)
        batch.pass_()

    with listener, AfXdpQueue("near", timestamps=True, **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        generator.send(1)
        take(queue, 1, look)
        assert listener.recv(100).startswith(b"passed")
    assert seen == [True]


@pytest.mark.needs_pyarrow
def test_arrow_has_them(veth: VethPair) -> None:
    import pyarrow as pa

    def look(batch: XdpBatch) -> None:
        record_batch = pa.record_batch(to_arrow(batch, columns=["timestamp", "length"]))
        told = record_batch["timestamp"].cast(pa.int64()).to_numpy()
        assert np.abs(told - batch.came_ns() // 1000).max() < 10**6  # the clocks are compared anew each time
        assert len(set(told.tolist())) > 1

    frame = frame_to_near(veth)
    with AfXdpQueue("near", timestamps=True, **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        for _ in range(20):
            generator.send(1)
        take(queue, 20, look)


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_a_later_queue_of_the_interface_may_ask_for_them(veth: VethPair) -> None:
    """The queues share a program: it is replaced, and stays so; who did not ask gets plain batches."""
    plain: list[XdpBatch] = []
    with AfXdpQueue("near", 0, **SMALL) as first, LiveGenerator(veth.far, frame_to_near(veth), cpu=0) as generator:
        with AfXdpQueue("near", 1, timestamps=True, share_umem_with=first, filter="udp", **SMALL):
            generator.send(5)
            assert take(first, 5, plain.append) == [frame_to_near(veth)] * 5
        generator.send(5)
        assert take(first, 5, plain.append) == [frame_to_near(veth)] * 5
        with AfXdpQueue("near", 1, share_umem_with=first, filter="tcp", **SMALL):
            generator.send(5)
            assert take(first, 5, plain.append) == [frame_to_near(veth)] * 5
        assert all(batch.timestamps_ns is None for batch in plain)


def test_bytes_that_nobody_wrote_are_no_time(veth: VethPair) -> None:
    """A driver without room for metadata leaves the headroom as it was."""
    frame = frame_to_near(veth)

    def wipe_one(batch: XdpBatch) -> None:
        assert isinstance(batch, StampedBatch)
        at = (int(batch.ids[0]) << 12) + int(batch.offsets[0])
        batch.driver.memory.flat[at - 16 : at] = 0
        stamps = batch.timestamps_ns
        assert stamps[0] == 0
        assert (stamps[1:] > 0).all()
        assert batch.came_ns()[0] > batch.came_ns()[1]  # now, and earlier
        wiped.append(batch)

    wiped: list[StampedBatch] = []
    with AfXdpQueue("near", timestamps=True, **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        generator.send(4)
        assert len(take(queue, 4, wipe_one)) == 4
        with pytest.raises(DeadBatchError):
            _ = wiped[0].timestamps_ns


def test_not_with_a_program_of_the_users(veth: VethPair) -> None:
    with pytest.raises(ValueError, match="leave timestamps= away"):
        AfXdpQueue("near", program="any.o", timestamps=True, **SMALL)

# SPDX-License-Identifier: MIT
"""`AfXdpQueue` on a veth pair: every verdict does what it says, and every page comes home."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time

import numpy as np
import pytest
from queues import SMALL, frame_to_near, settled, take

from pagepool.drivers.af_xdp import AfXdpQueue, FilterError, QueueClosedError
from pagepool.errors import DeviceError, WrongThreadError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import DeadBatchError, XdpAction, XdpBatch, XdpBuff, per_frame

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

both_modes = pytest.mark.parametrize("mode", ["native", "generic"])


@both_modes
def test_frames_arrive_in_order_and_once(veth: VethPair, mode: str) -> None:
    veth.near.set_gro(mode == "generic")
    frame = frame_to_near(veth, length=512)
    with (
        AfXdpQueue("near", mode=mode, **SMALL) as queue,  # type: ignore[arg-type]
        LiveGenerator(veth.far, frame, sequence=True) as generator,
    ):
        seen = []
        for _ in range(20):  # many times round the rings
            generator.send(200)
            seen += take(queue, 200)
        numbers = [struct.unpack_from("!I", got, 42)[0] for got in seen]
        assert numbers == list(range(4000))
        assert all(got[:42] + got[46:] == frame[:42] + frame[46:] for got in seen)
        stats = queue.stats()
        assert (stats.mode, stats.zerocopy) == (mode, False)
        assert stats.rings.rx_frames == stats.xdp.drop == stats.steering.redirected == 4000
        assert stats.rings.bad_descriptors == stats.pool.rejected == 0
        assert stats.pool.maps == 1
        json.dumps(stats.as_dict())
        queue.pool.check()
    assert queue.pool.lent == 0
    queue.pool.check()


@both_modes
def test_tx_echoes(veth: VethPair, mode: str) -> None:
    veth.near.set_gro(mode == "generic")
    frame = frame_to_near(veth)
    with veth.far.ns:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((veth.far.ipv4, 4000))
    listener.settimeout(2)

    def echo(batch: XdpBatch) -> None:
        macs, ips, ports = batch.headers(12), batch.headers(8, at=26), batch.headers(4, at=34)
        macs[:, :] = np.roll(np.asarray(macs), 6, axis=1)
        ips[:, :] = np.roll(np.asarray(ips), 4, axis=1)
        ports[:, :] = np.roll(np.asarray(ports), 2, axis=1)
        batch.tx()

    with (
        listener,
        AfXdpQueue("near", mode=mode, **SMALL) as queue,  # type: ignore[arg-type]
        LiveGenerator(veth.far, frame) as generator,
    ):
        for _ in range(10):
            generator.send(50)
            assert len(take(queue, 50, echo)) == 50
            for _ in range(50):
                payload, sender = listener.recvfrom(2048)
                assert payload == frame[42:]
                assert sender == (veth.near.ipv4, 4001)
        assert settled(queue)
        stats = queue.stats()
        assert stats.xdp.tx == stats.rings.tx_frames == stats.rings.tx_completed == 500
        assert stats.xdp.tx_dropped == 0
        queue.pool.check()
    assert queue.pool.lent == 0


@both_modes
def test_pass_reaches_the_stack(veth: VethPair, mode: str) -> None:
    veth.near.set_gro(mode == "generic")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        AfXdpQueue("near", mode=mode, **SMALL) as queue,  # type: ignore[arg-type]
        LiveGenerator(veth.far, frame_to_near(veth, length=128)) as generator,
    ):
        receiver.bind((veth.near.ipv4, 4001))
        receiver.settimeout(2)
        generator.send(20)
        assert len(take(queue, 20, XdpBatch.pass_)) == 20
        for _ in range(20):
            assert len(receiver.recv(2048)) == 128 - 42
        assert queue.poll() is None  # the passed frames did not come round again
        stats = queue.stats()
        assert (stats.xdp.passed, stats.xdp.pass_dropped, stats.rings.pass_errors) == (20, 0, 0)
    assert queue.pool.lent == 0


def test_pass_works_from_another_namespace_and_thread(veth: VethPair) -> None:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((veth.near.ipv4, 4001))
    receiver.settimeout(2)
    queue = AfXdpQueue("near", **SMALL)
    frame = frame_to_near(veth)

    def elsewhere() -> None:
        with veth.far.ns, LiveGenerator(veth.far, frame) as generator:
            generator.send(3)
            take(queue, 3, XdpBatch.pass_)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with receiver:
        assert [receiver.recv(2048) for _ in range(3)] == [frame[42:]] * 3
    with pytest.raises(WrongThreadError):  # the other thread polled first, so it is the owner
        queue.poll()
    queue.claim()
    assert queue.poll() is None
    queue.close()
    assert queue.pool.lent == 0


def test_kept_pages_outlive_the_queue(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    with AfXdpQueue("near", **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        generator.send(10)
        kept: list[memoryview] = []
        take(queue, 10, lambda batch: kept.extend(memoryview(page) for page in batch.keep(slice(0, 4))))
        assert queue.stats().xdp.keep == 4
    assert queue.pool.lent == 4
    assert [bytes(view) for view in kept] == [frame] * 4
    kept.clear()
    assert queue.pool.lent == 0
    queue.pool.check()


def test_verdicts_by_mask_and_per_frame(veth: VethPair) -> None:
    frame = frame_to_near(veth, src_port=4000)
    with (
        AfXdpQueue("near", **SMALL) as queue,
        LiveGenerator(veth.far, frame, nr_flows=4) as generator,
    ):
        generator.send(40)
        taken = take(queue, 40, lambda batch: batch.tx(batch.headers(36)[:, 35] == 4000 % 256))
        assert len(taken) == 40
        assert queue.stats().xdp.tx == 10
        generator.send(40)

        def judge(buff: XdpBuff) -> XdpAction:
            return XdpAction.TX if buff.data[35] == 4001 % 256 else XdpAction.DROP

        total = queue.run(per_frame(judge), seconds=5, until=lambda: queue.xdp_stats.rx_frames == 80)
        assert total == 40
        assert queue.xdp_stats.tx == 20
        assert settled(queue)
    assert queue.pool.lent == 0


def test_a_batch_is_completed_by_the_next_poll_and_by_close(veth: VethPair) -> None:
    with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        queue = AfXdpQueue("near", **SMALL)
        generator.send(8)
        assert queue.napi.wait(2)
        first = queue.poll(4)
        assert first is not None
        second = queue.poll(4)
        assert second is not None
        with pytest.raises(DeadBatchError):
            first.frame(0)
        queue.close()
        queue.close()
        with pytest.raises(DeadBatchError):
            second.frame(0)
        assert queue.pool.lent == 0
        for call in (queue.poll, queue.stats):
            with pytest.raises(QueueClosedError, match="closed"):
                call()
        assert queue.xdp_xmit(queue.pool, *(np.zeros(1, np.uint32),) * 3) == 0


@pytest.mark.parametrize(("busy_poll", "spin_us"), [(False, 0), (False, 50), (True, math.inf)])
def test_sleep_and_spin(veth: VethPair, busy_poll: bool, spin_us: float) -> None:
    frame = frame_to_near(veth)
    with (
        AfXdpQueue("near", busy_poll=busy_poll, **SMALL) as queue,
        LiveGenerator(veth.far, frame, rate_pps=2000) as generator,
    ):
        generator.start(200)
        seen = 0

        def count(batch: XdpBatch) -> None:
            nonlocal seen
            seen += len(batch)

        assert queue.run(count, seconds=60, until=lambda: seen == 200, busy_poll_us=spin_us) == 200
        start = time.monotonic()
        assert queue.run(XdpBatch.drop, seconds=0.1, busy_poll_us=spin_us) == 0
        assert time.monotonic() - start >= 0.1
        generator.start(200)
        for batch in queue.poll_forever(timeout=60):
            seen += len(batch)
            if seen == 400:
                break
        assert list(queue.poll_forever(timeout=0.1)) == []
        assert (queue.stats().napi.sleeps > 0) is True


def test_many_frames_at_once_wait_in_the_ring(veth: VethPair) -> None:
    """A burst larger than the rings loses exactly what the kernel counts."""
    with AfXdpQueue("near", **SMALL) as queue, LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        generator.send(5000)
        got = len(take(queue, 5000, timeout=0.3))
        stats = queue.stats().socket
        assert got == 256
        assert got + stats.rx_dropped + stats.rx_ring_full >= 5000
        generator.send(100)
        assert len(take(queue, 100)) == 100


@pytest.mark.parametrize("veth", [{"mtu": 9000}], indirect=True)
def test_frames_that_do_not_fit_a_page_are_dropped_by_the_socket(veth: VethPair) -> None:
    with veth.far.ns:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with AfXdpQueue("near", **SMALL) as queue, sender:
        sender.sendto(bytes(8000), (veth.near.ipv4, 4001))
        sender.sendto(bytes(3000), (veth.near.ipv4, 4001))
        assert [len(got) for got in take(queue, 1)] == [3042]
        assert queue.stats().socket.rx_dropped == 1


def test_refusals_leave_nothing_behind(veth: VethPair) -> None:
    cases = (
        ({"ifname": "none"}, "ENODEV; no such interface"),
        ({"ifname": "near", "queue": 9}, "EINVAL; no such queue"),
        ({"ifname": "near", "queue": -1}, "EINVAL; no such queue"),
        ({"ifname": "near", "queue": 1 << 32}, "EINVAL; no such queue"),
        ({"ifname": "near", "zerocopy": True}, "the driver has no zero copy"),
        ({"ifname": "near", "rx_ring": 100}, "ring sizes are powers of two"),
    )
    for arguments, text in cases:
        with pytest.raises(DeviceError, match=text):
            AfXdpQueue(**arguments)  # type: ignore[arg-type]
    with pytest.raises(FilterError):
        AfXdpQueue("near", filter="nonsense")
    with (
        AfXdpQueue("near", **SMALL),
        pytest.raises(DeviceError, match="EBUSY; another socket owns the queue"),
    ):
        AfXdpQueue("near", **SMALL)
    with AfXdpQueue("near", filter="udp", **SMALL), pytest.raises(DeviceError, match=r"EBUSY.*filter 'udp'"):
        AfXdpQueue("near", filter="tcp", **SMALL)
    AfXdpQueue("near", **SMALL).close()


def test_foreign_and_repeated_ids_are_not_sent(veth: VethPair) -> None:
    with AfXdpQueue("near", **SMALL) as queue:
        ids = queue.pool.alloc_bulk(2)
        page = np.array([ids[0]], np.uint32)
        zero, sixty = np.zeros(1, np.uint32), np.full(1, 60, np.uint32)
        for bad in (10**6, 0xFFFFFFFF):  # not in the arena
            assert queue.transmit(np.array([bad], np.uint32), sixty, zero) == 0
        idle = next(i for i in range(4000) if i not in ids and i % 3 == 0)  # in the fill ring, or in the pool
        assert queue.transmit(np.array([idle], np.uint32), sixty, zero) == 0
        assert queue.transmit(page, np.full(1, 5000, np.uint32), zero) == 0  # leaves its page
        assert queue.transmit(page, sixty, np.full(1, 4090, np.uint32)) == 0
        assert queue.transmit(page, np.full(1, 3, np.uint32), zero) == 0  # no Ethernet header
        assert (
            queue.transmit(np.array([ids[0], ids[0]], np.uint32), np.full(2, 60, np.uint32), np.zeros(2, np.uint32))
            == 1
        )
        queue.pool.put_bulk(ids[1:])
        queue.poll()
        assert settled(queue)
    assert queue.pool.lent == 0
    queue.pool.check()

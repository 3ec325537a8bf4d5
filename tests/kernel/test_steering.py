# SPDX-License-Identifier: MIT
"""Who gets a frame: this queue, that queue, or the kernel's stack, which must not notice that we are here."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from queues import SMALL, frame_to_near, take

from pagepool.drivers.af_xdp import AfXdpQueue, FilterError
from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.drivers.af_xdp.filter.grammar import MAX_PRIMITIVES
from pagepool.drivers.af_xdp.xdp_program import steering_code
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethEnd, VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

two_queues = pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)


def cpu_of_queue(queue: int) -> int:
    """Return a CPU whose frames arrive on this queue of two."""
    return next(cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu % 2 == queue)


@two_queues
def test_each_queue_has_its_own_filter(veth: VethPair) -> None:
    dns, other, third = (frame_to_near(veth, dst_port=port) for port in (53, 54, 55))
    with (
        AfXdpQueue("near", 0, filter="udp port 53", **SMALL) as first,
        AfXdpQueue("near", 1, filter="udp and not port 53 and not port 55", **SMALL) as second,
    ):
        for queue in (0, 1):
            for frame, count in ((dns, 10), (other, 20), (third, 40)):
                with LiveGenerator(veth.far, frame, cpu=cpu_of_queue(queue)) as generator:
                    generator.send(count)
        assert take(first, 99, timeout=0.3) == [dns] * 10
        assert take(second, 99, timeout=0.3) == [other] * 20
        counted = first.stats().steering
        assert (counted.redirected, counted.passed) == (30, 110)


@two_queues
def test_a_new_filter_does_not_disturb_the_other_queue(veth: VethPair) -> None:
    dns = frame_to_near(veth, dst_port=53)
    with (
        AfXdpQueue("near", 0, filter="udp port 53", **SMALL) as first,
        LiveGenerator(veth.far, dns, cpu=cpu_of_queue(0)) as generator,
    ):
        for filter in ("tcp", "udp port 53", "vlan 7", "ip6 or arp"):
            with AfXdpQueue("near", 1, filter=filter, **SMALL) as second:
                generator.send(25)
                assert len(take(first, 25)) == 25
                assert take(second, 1, timeout=0.05) == []
        generator.send(25)
        assert len(take(first, 25)) == 25
        assert first.stats().steering.redirected == 125


@two_queues
def test_a_filter_that_is_refused_leaves_the_others_at_work(veth: VethPair) -> None:
    dns = frame_to_near(veth, dst_port=53)
    with (
        AfXdpQueue("near", 0, filter="udp port 53", **SMALL) as first,
        LiveGenerator(veth.far, dns, cpu=cpu_of_queue(0)) as generator,
    ):
        with pytest.raises(FilterError):
            AfXdpQueue("near", 1, filter="udp prt 53", **SMALL)
        generator.send(25)
        assert len(take(first, 99, timeout=0.3)) == 25


def test_many_long_filters_together() -> None:
    def longest(first: int) -> str:
        return " or ".join(f"src and dst port {first + index}" for index in range(MAX_PRIMITIVES))

    with XskMap(4) as xsks, PerCpuArrayMap(3) as counters:
        code = steering_code(xsks, counters, "udp", {queue: longest(queue) for queue in range(8)}, generic=True)
        XdpProgram(code).close()
        with pytest.raises(FilterError, match="33 filters are too big together"):
            steering_code(xsks, counters, "udp", {queue: longest(queue) for queue in range(32)})


@contextmanager
def echo_server(end: VethEnd) -> Iterator[int]:
    """Echo one TCP connection inside a namespace; yield the port."""
    with end.ns:
        listener = socket.create_server((end.ipv4, 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("veth", [{"gro": True}], indirect=True)
def test_the_stack_does_not_notice(veth: VethPair, mode: str) -> None:
    """A TCP connection and another UDP port live on while a queue takes one port: bytes and counters exact."""
    nr_frames, nr_datagrams, megabytes = 1000, 200, 2
    frame = frame_to_near(veth, dst_port=4001)
    sent, echoed = hashlib.sha256(), hashlib.sha256()
    with ExitStack() as undo:
        queue = undo.enter_context(AfXdpQueue("near", filter="udp port 4001", mode=mode, **SMALL))  # type: ignore[arg-type]
        generator = undo.enter_context(LiveGenerator(veth.far, frame))
        port = undo.enter_context(echo_server(veth.near))
        other = undo.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        other.bind((veth.near.ipv4, 4002))
        other.settimeout(10)
        with veth.far.ns:
            client = undo.enter_context(socket.create_connection((veth.near.ipv4, port), 10))
            sender = undo.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        taken: list[bytes] = []
        block = bytes(range(256)) * 256
        for round_number in range(16 * megabytes):
            client.sendall(block)
            sent.update(block)
            missing = len(block)
            while missing:
                data = client.recv(missing)
                assert data
                echoed.update(data)
                missing -= len(data)
            if round_number % 4 == 0:
                generator.send(nr_frames // (4 * megabytes))
                taken += take(queue, nr_frames // (4 * megabytes))
        for number in range(nr_datagrams):
            sender.sendto(b"%d" % number, (veth.near.ipv4, 4002))
            assert other.recv(100) == b"%d" % number
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        assert sent.digest() == echoed.digest()
        assert taken == [frame] * nr_frames
        stats = queue.stats()
        assert stats.steering.redirected == stats.rings.rx_frames == nr_frames
        assert stats.steering.passed >= nr_datagrams + 16 * megabytes
        assert stats.socket.rx_dropped == stats.socket.rx_ring_full == 0
        assert take(queue, 1, timeout=0.05) == []

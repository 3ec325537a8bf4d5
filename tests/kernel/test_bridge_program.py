# SPDX-License-Identifier: MIT
"""A bridge over which goes what an XDP program of the user's redirects; all else is the kernel's stack's, untouched."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from commands import assert_refused, rx, started, summary_of, xdp_program
from elf_writer import port_program
from queues import SMALL, frame_to_near, settled, take, two_wires

from pagepool.drivers.af_xdp import AfXdpQueue, XdpObject, open_queues
from pagepool.drivers.bridge import Bridge
from pagepool.drivers.queue_threads import QueueThreads
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethEnd, VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

Wires = tuple[VethPair, VethPair]
PORT = 53
ETH_P_ALL = 0x0003


@pytest.fixture
def wires() -> Iterator[Wires]:
    with two_wires() as both:
        yield both


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "port.o"
    path.write_bytes(port_program(PORT))
    return path


@contextmanager
def stack_of(end: VethEnd) -> Iterator[socket.socket]:
    """Open a socket that sees what the stack gets of an interface."""
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sniffer.bind((end.ifname, ETH_P_ALL))
        sniffer.settimeout(0.3)
        yield sniffer


@contextmanager
def somebody_listens() -> Iterator[None]:
    """Have the stack answer nothing to the frames that it gets."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener:
        listener.bind(("", PORT + 1))
        yield


def heard(sniffer: socket.socket, count: int) -> list[bytes]:
    """Return what came in, `count` frames or what came before it was silent."""
    frames: list[bytes] = []
    try:
        while len(frames) <= count:
            data, (_, _, kind, *_) = sniffer.recvfrom(4096)
            if kind != socket.PACKET_OUTGOING:
                frames.append(data)
    except TimeoutError:
        pass
    return frames


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_what_the_program_takes_crosses_and_the_stack_has_the_rest(wires: Wires, program: Path, mode: str) -> None:
    wanted = [frame_to_near(pair, dst_port=PORT, length=300 + 100 * n) for n, pair in enumerate(wires)]
    other = [frame_to_near(pair, dst_port=PORT + 1, length=600 + 100 * n) for n, pair in enumerate(wires)]
    with ExitStack() as stack:
        options = {"program": program, "mode": mode, "promiscuous": True, **SMALL}
        a, b = stack.enter_context(open_queues(["near", "other"], **options))
        assert a.program is not None
        assert a.program is not b.program  # one for each interface: its map has one place for each queue number
        stack.enter_context(somebody_listens())
        sniffers = [stack.enter_context(stack_of(pair.near)) for pair in wires]
        ends = []
        for pair in wires:
            with pair.far.ns:
                ends.append(stack.enter_context(AfXdpQueue("far", rx_ring=1024, tx_ring=64)))
        senders = [
            [stack.enter_context(LiveGenerator(pair.far, frame)) for frame in both]
            for pair, *both in zip(wires, wanted, other, strict=True)
        ]
        bridge = Bridge(a, b)
        for _ in range(10):
            for first, second in senders:
                first.send(30)
                second.send(20)
            while bridge.poll():
                pass
        assert take(ends[1], 301, timeout=1) == [wanted[0]] * 300
        assert take(ends[0], 301, timeout=1) == [wanted[1]] * 300
        for sniffer, frame in zip(sniffers, other, strict=True):
            assert heard(sniffer, 200) == [frame] * 200
        stats = bridge.stats()
        for queue, way in ((a, stats.a_to_b), (b, stats.b_to_a)):
            assert (way.received, way.forwarded, way.refused, way.judged, way.copied) == (300, 300, 0, 0, 0)
            assert settled(queue)
            counted = queue.stats().steering
            assert (counted.redirected, counted.passed) == (300, 200)
            queue.pool.check()


def test_a_connection_to_the_stack_lives_on_beside_the_bridge(wires: Wires, program: Path) -> None:
    """1 MiB by TCP each way through an interface that is bridged meanwhile."""
    near, other = wires
    frame = frame_to_near(near, dst_port=PORT)
    block = bytes(range(256)) * 256
    with ExitStack() as stack:
        one, two = (stack.enter_context(XdpObject(program)) for _ in range(2))
        a = stack.enter_context(AfXdpQueue("near", program=one, frames=4096, **SMALL))
        b = stack.enter_context(AfXdpQueue("other", program=two, share_umem_with=a, **SMALL))
        with other.far.ns:
            end = stack.enter_context(AfXdpQueue("far", rx_ring=2048, tx_ring=64))
        generator = stack.enter_context(LiveGenerator(near.far, frame))
        listener = stack.enter_context(closing(socket.create_server((near.near.ipv4, 0))))
        with near.far.ns:
            client = stack.enter_context(socket.create_connection(listener.getsockname(), 10))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(10)
        bridge = Bridge(a, b)
        with QueueThreads(bridge.queues, bridge.handlers):
            for _ in range(16):
                generator.send(50)
                for source, target in ((client, server), (server, client)):
                    source.sendall(block)
                    received = bytearray()
                    while len(received) < len(block):
                        received += target.recv(1 << 16)
                    assert received == block
        assert take(end, 801, timeout=1) == [frame] * 800
        assert bridge.stats().a_to_b.forwarded == 800
        assert bridge.stats().b_to_a.received == 0


def test_the_command_forwards_what_the_program_takes(wires: Wires, program: Path) -> None:
    near, other = wires
    wanted, rest = (frame_to_near(near, dst_port=port, length=200) for port in (PORT, PORT + 1))
    with ExitStack() as stack:
        stack.enter_context(somebody_listens())
        sniffer = stack.enter_context(stack_of(near.near))
        with other.far.ns:
            end = stack.enter_context(AfXdpQueue("far", rx_ring=1024, tx_ring=64))
        senders = [stack.enter_context(LiveGenerator(near.far, frame)) for frame in (wanted, rest)]
        arguments = ("near", "--forward", "other", "--threads", "1", "--program", str(program), "--json")
        with started(*arguments) as process:
            for _ in range(10):
                for sender in senders:
                    sender.send(25)
            assert take(end, 251, timeout=2) == [wanted] * 250
            assert heard(sniffer, 250) == [rest] * 250
            summary = summary_of(process)
    assert [(way["received"], way["forwarded"], way["copied"]) for way in summary["forward"]] == [
        (250, 250, 0),
        (0, 0, 0),
    ]
    deadline = time.monotonic() + 5
    while (xdp_program(near.near) or xdp_program(other.near)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert xdp_program(near.near) == xdp_program(other.near) == 0
    assert_refused(rx("near", "--forward", "other", "--program", __file__), "not an ELF object")

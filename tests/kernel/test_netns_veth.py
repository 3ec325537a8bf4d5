# SPDX-License-Identifier: MIT
"""Namespaces and veth pairs of pagepool.testing appear, carry traffic and vanish."""

from __future__ import annotations

import os
import socket

import pytest

from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import Generator, LiveGenerator
from pagepool.testing.netns import NetNs
from pagepool.testing.packet_generator import PacketGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]


def here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_enter_nests_and_comes_back() -> None:
    outside, a, b = here(), NetNs(), NetNs()
    with a:
        inside_a = here()
        with b:
            assert here() not in (outside, inside_a)
        assert here() == inside_a
    assert here() == outside
    a.close()
    b.close()
    with pytest.raises(DeviceError, match="it was closed"), a:
        pass
    assert here() == outside


def test_close_leaves_no_descriptor() -> None:
    with VethPair():
        pass  # what pyroute2 keeps for itself from its first use on
    before = set(os.listdir("/proc/self/fd"))
    with VethPair(), VethPair(nr_queues=2, mtu=9000):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_udp_crosses_and_delete_is_idempotent() -> None:
    with VethPair() as pair:
        with pair.near.ns:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with pair.far.ns:
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.settimeout(2)
            receiver.bind((pair.near.ipv4, 4001))
            sender.sendto(b"over the veth", (pair.near.ipv4, 4001))
            assert receiver.recv(64) == b"over the veth"
        pair.delete()
        pair.delete()


@pytest.mark.needs_af_xdp
@pytest.mark.parametrize("kind", [LiveGenerator, PacketGenerator])
def test_generator_sends_an_exact_count_of_flows(kind: type[Generator]) -> None:
    with VethPair(gro=True) as pair:
        with pair.near.ns:
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind((pair.near.ipv4, 4001))
        near, far = pair.near, pair.far
        frame = udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4, src_port=4000)
        with receiver, kind(far, frame, nr_flows=3) as generator:
            receiver.settimeout(2)
            assert generator.send(9) == 9
            ports = [receiver.recvfrom(64)[1][1] for _ in range(9)]
            assert sorted(ports) == sorted([4000, 4001, 4002] * 3)
            generator.start()
            receiver.recv(64)
            generator.stop()
            assert generator.sent > 9

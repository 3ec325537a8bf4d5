# SPDX-License-Identifier: MIT
"""Frames that a device sends to a queue because it was told so, before any memory of another queue is touched.

No NIC that QEMU emulates obeys n-tuple rules. Those are shown with ``modules/flow_rules/rule_nic.c``, a NIC in software
whose rules are translated and whose frames are taken apart by the kernel: what it shows is that our rules say what they
should. QEMU's 82576 does obey its RSS table, with the kernel's igb between: that is shown on it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from pagepool import PageAllocator, ethtool
from pagepool.drivers.af_xdp import AfXdpQueue, open_queues
from pagepool.drivers.af_xdp.filter.meaning import matches
from pagepool.drivers.flow_rules import FlowRules
from pagepool.testing.frames import ethernet_frame, udp_frame

from .flow_rules import interface, refusal
from .support import host, modules
from .support.command import Command
from .support.frames import make_frame
from .support.net import bring_up
from .support.suite import cases

BOOTS = ("newest",)
MODULES = ("igb", "flow_rules")
NIC, WIRE = "rule-nic", "rule-wire"
SMALL: dict[str, Any] = {"rx_ring": 256, "tx_ring": 64}
US, THEM, ELSE = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))
UNTOUCHED = 0x5A
FILTERS = (
    "udp dst port 53",
    "tcp src port 443",
    "ip and udp and src net 10.1.0.0/16",
    "ip6 and tcp",
    "ip and tcp and dst host 10.2.0.1 and dst port 80",
    "dst host 2001:db8::1 and udp port 53",
    "ether proto 0x88b5",
    "arp",
    "ether dst 02:00:00:00:00:03",
    "ether src 02:00:00:00:00:02 and ip",
    "ip and udp and ether dst 02:00:00:00:00:03",
    "vlan 100",
    "vlan 200 and udp dst port 53",
    "udp dst port 53 or tcp dst port 80",
)


@contextmanager
def rule_nic(*queues: int) -> Iterator[list[AfXdpQueue]]:
    """Open queues of the NIC that obeys, each with a memory of its own; frames are sent on `WIRE`."""
    modules.load("flow_rules", "rule_nic")
    for ifname in (NIC, WIRE):
        Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("1")  # no frames but ours
        bring_up(ifname)
    with ExitStack() as stack:
        memories = [stack.enter_context(PageAllocator(4 << 20, commit=True)) for _ in queues]
        yield [
            stack.enter_context(AfXdpQueue(NIC, queue, frames=1024, memory=memory, **SMALL))
            for queue, memory in zip(queues, memories, strict=True)
        ]


def send(frames: list[bytes]) -> None:
    """Put frames on the wire."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((WIRE, 0))
        for frame in frames:
            wire.send(frame)


def receive(queues: list[AfXdpQueue], count: int) -> list[list[bytes]]:
    """Return the frames that came to each queue, when they are so many together."""
    found: list[list[bytes]] = [[] for _ in queues]
    deadline = time.monotonic() + 60
    while sum(map(len, found)) < count and time.monotonic() < deadline:
        for queue, frames in zip(queues, found, strict=True):
            if (batch := queue.poll()) is not None:
                with batch:
                    frames += [bytes(batch.frame(i)) for i in range(len(batch))]
                    batch.drop()
    return found


def flows() -> list[bytes]:
    """Return frames of many flows, each once, and others."""
    found = [
        udp_frame(
            b"%d/%d" % (protocol, number),
            src=source,
            dst=sink,
            src_ip=f"10.{1 + number % 2}.0.9",
            dst_ip=f"10.2.0.{1 + number % 2}",
            src_port=ports[0],
            dst_port=ports[1],
            protocol=protocol,
            vlan=vlan,
        )
        for number, (protocol, ports, vlan, (source, sink)) in enumerate(
            product((6, 17), ((443, 53), (53, 80), (9, 443)), (None, 100, 200), ((US, THEM), (THEM, ELSE)))
        )
    ]
    found += [
        ethernet_frame(ipv6(protocol, *ports, last), src=US, dst=sink, ethertype=0x86DD, vlan=vlan)
        for protocol, ports, vlan, sink, last in product(
            (6, 17), ((443, 53), (9, 80)), (None, 200), (THEM, ELSE), (1, 2)
        )
    ]
    found += [
        ethernet_frame(bytes([n]), src=US, dst=sink, ethertype=kind)
        for n, (kind, sink) in enumerate(product((0x0806, 0x88B5, 0x88B6), (THEM, ELSE)))
    ]
    assert len(set(found)) == len(found)
    return found


def ipv6(protocol: int, source: int, sink: int, last: int) -> bytes:
    """Return an IPv6 packet with ports, to 2001:db8::`last`."""
    body = struct.pack("!HHHH", source, sink, 20, 0).ljust(20, b"6")
    place = socket.inet_pton(socket.AF_INET6, "2001:db8::")[:15]
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + place + b"\x09" + place + bytes([last]) + body


def dns(count: int) -> list[bytes]:
    """Return requests to port 53, each with a number."""
    ends = {"src": US, "dst": THEM, "src_ip": "10.1.0.1", "dst_ip": "10.2.0.1"}
    return [udp_frame(b"dns %d" % n, src_port=1024 + n, dst_port=53, **ends) for n in range(count)]


def test_a_rule_sends_a_flow_to_its_queue() -> None:
    """Not a byte of the memory of the queue that it had gone to is touched; without the rule it comes there again."""
    with rule_nic(0, 3) as (other, ours):
        assert receive([other, ours], 0) == [[], []]  # the rings are full of pages
        view = other.memory.flat
        with FlowRules(NIC) as rules:
            rules.add("udp dst port 53", queue=3)
            view[:] = UNTOUCHED
            send(dns(100))
            assert receive([ours], 100) == [dns(100)]
            assert (view == UNTOUCHED).all()
            assert other.poll() is None
            assert other.stats().socket.rx_dropped == 0
        send(dns(50))
        assert receive([other, ours], 50) == [dns(50), []]
        assert not (view == UNTOUCHED).all()
        for queue in (other, ours):
            queue.pool.check()


def test_the_lowest_rule_that_matches_decides() -> None:
    """The first rule takes the last place: one that is added later goes before it."""
    with rule_nic(0, 1, 2) as queues, FlowRules(NIC) as rules:
        rules.add("ip and udp", queue=1)
        send(dns(10))
        assert [len(frames) for frames in receive(queues, 10)] == [0, 10, 0]
        places = rules.add("ip and udp dst port 53", queue=2)
        send(dns(10))
        assert [len(frames) for frames in receive(queues, 10)] == [0, 0, 10]
        rules.remove(places)
        ethtool.set_feature(NIC, ethtool.NTUPLE, False)
        send(dns(10))
        assert [len(frames) for frames in receive(queues, 10)] == [10, 0, 0]
        ethtool.set_feature(NIC, ethtool.NTUPLE, True)


def test_rules_decide_as_filters_do() -> None:
    """The NIC's choice is that of `matches`, the meaning of the very words, frame by frame."""
    frames = flows()
    with rule_nic(0, 1) as queues, FlowRules(NIC) as rules:
        for filter in FILTERS:
            places = rules.add(filter, queue=1)
            send(frames)
            others, taken = receive(queues, len(frames))
            rules.remove(places)
            wanted = [frame for frame in frames if matches(filter, frame)]
            print(f"{filter!r}: {len(places)} rules, {len(taken)} of {len(frames)} frames")
            assert 0 < len(wanted) < len(frames), filter
            assert (taken, len(others)) == (wanted, len(frames) - len(wanted)), filter


def test_the_command_steers() -> None:
    """``pagepool rx --steer``: the frames are where the rule sends them, and the rule goes with the command."""
    with rule_nic():
        queues = ("--queue", "0", "--queue", "3", "--steer", "3:ip and udp dst port 53")
        command = Command("rx", NIC, *queues, "--action", "drop", "--seconds", "60", "--json")
        samples = [json.loads(command.stdout.readline())]
        others = [frame for frame in flows() if not matches("ip and udp dst port 53", frame)]
        send(dns(30) + others)
        while samples[-1].get("frames", 0) < 30 + len(others) and (line := command.stdout.readline()):
            samples.append(json.loads(line))
        command.terminate()
        samples += [json.loads(line) for line in command.stdout]
        errors, status = command.stderr.read(), command.wait()
        assert (status, errors) == (0, ""), errors
        print({queue["queue"]: queue["frames"] for queue in samples[-1]["queues"]})
        assert {queue["queue"]: queue["frames"] for queue in samples[-1]["queues"]} == {0: len(others), 3: 30}
        with FlowRules(NIC) as rules:
            assert rules.listed() == []


@cases("ip proto 47", "sctp dst port 9")
def test_what_it_cannot_match_is_refused(filter: str) -> None:
    with rule_nic() as _, FlowRules(NIC) as rules:
        assert "cannot match these fields" in str(refusal(rules.add, filter, 1))
        assert rules.listed() == []


def test_rules_outlive_a_process_that_is_killed() -> None:
    """As `docs/demux.md` says: who finds them can see and remove them."""
    with rule_nic(0, 1) as queues:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            FlowRules(NIC).add("ip and udp dst port 53", queue=1)
            os.write(writer, b"!")
            signal.pause()
        assert os.read(reader, 1) == b"!"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with FlowRules(NIC) as rules:
            (left,) = rules.listed()
            assert (left.queue, rules.own) == (1, [])
            send(dns(5))
            assert [len(frames) for frames in receive(queues, 5)] == [0, 5]
            rules._delete(left.location)
            assert rules.listed() == []
        ethtool.set_feature(NIC, ethtool.NTUPLE, False)


def test_the_device_follows_its_rss_table() -> None:
    """QEMU's 82576 under the kernel's igb: the table, set by netlink, says which queues get anything."""
    ifname = interface()
    before = ethtool.rss_indirection(ifname)
    with open_queues([ifname], [0, 1], **SMALL) as queues:
        bring_up(ifname)
        wait_for_frames(queues)
        try:
            for table in ([1], [0], [0, 1]):
                ethtool.set_rss_indirection(ifname, table)
                # The kernel makes its key up: hosts that differ in few bits may all have the same hash modulo two.
                each = [counts_of(queues, 5, first=5113 * part, seed=21 * part) for part in range(12)]
                got = [sum(counts) for counts in zip(*each, strict=True)]
                print(f"table {table}: {got}, zero copy {queues[0].is_zerocopy}")
                assert sum(got) == 60
                assert {queue for queue, count in enumerate(got) if count} == set(table)
        finally:
            ethtool.set_rss_indirection(ifname, before[:2])


def wait_for_frames(queues: list[AfXdpQueue]) -> None:
    """Send until something comes: to bind queues takes the link down for a moment."""
    deadline = time.monotonic() + 60
    while not sum(counts_of(queues, 1, seed=99, quiet_s=0.5)):
        assert time.monotonic() < deadline, "no frame in a minute"


def counts_of(
    queues: list[AfXdpQueue], count: int, *, first: int = 0, seed: int = 0, quiet_s: float = 30.0
) -> list[int]:
    """Have the host send frames of many flows; return how many of these came to each queue, byte for byte."""
    wanted = {make_frame(index, seed=seed)[12:] for index in range(first, first + count)}
    host.send("igb1", count, first=first, seed=seed).result()
    counts, deadline = [0] * len(queues), time.monotonic() + quiet_s
    while sum(counts) < count and time.monotonic() < deadline:
        for number, queue in enumerate(queues):
            if (batch := queue.poll()) is not None:
                with batch:
                    counts[number] += sum(bytes(batch.frame(i))[12:] in wanted for i in range(len(batch)))
                    batch.drop()
    return counts

# SPDX-License-Identifier: MIT
"""``pagepool rx`` on several interfaces, and ``--forward`` between two: both ways, refusals, and any end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from commands import assert_refused, rx, started, summary_of, xdp_program
from pyroute2 import IPRoute
from queues import frame_to_near, take, two_wires

from pagepool.drivers.af_xdp import AfXdpQueue, open_queues
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

Wires = tuple[VethPair, VethPair]


@pytest.fixture
def wires(request: pytest.FixtureRequest) -> Iterator[Wires]:
    with two_wires(getattr(request, "param", 1)) as both:
        yield both


def promiscuity(ifname: str) -> int:
    with IPRoute() as route:
        (link,) = route.get_links(ifname=ifname)
        return int(link.get("promiscuity"))


def free(wires: Wires) -> bool:
    """Whether nothing of the command is left at either interface, within a few seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(xdp_program(pair.near) or promiscuity(pair.near.ifname) for pair in wires):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("wires", [2], indirect=True)
def test_forwards_both_ways_on_all_queues(wires: Wires) -> None:
    """What arrives is what was sent, and the figures of both directions are exact."""
    near, other = wires
    cpu = max(os.sched_getaffinity(0))
    with started("near", "--forward", "other", "--json") as process:
        assert promiscuity("near") == promiscuity("other") == 2  # one for each queue
        for source, target, count in ((near, other, 1500), (other, near, 500)):
            frame = frame_to_near(source, length=700)
            with target.far.ns:
                end = AfXdpQueue("far", cpu % 2, rx_ring=2048, tx_ring=64)
            with end, LiveGenerator(source.far, frame, rate_pps=20_000, cpu=cpu) as generator:
                generator.send(count)
                assert take(end, count) == [frame] * count
        summary = summary_of(process)
    assert summary["action"] == "forward"
    assert summary["forward"] == [
        {"source": "near", "target": "other", "received": 1500, "forwarded": 1500, "refused": 0, "copied": 0},
        {"source": "other", "target": "near", "received": 500, "forwarded": 500, "refused": 0, "copied": 0},
    ]
    assert [(queue["name"], queue["queue"]) for queue in summary["queues"]] == [
        ("near", 0),
        ("near", 1),
        ("other", 0),
        ("other", 1),
    ]
    assert summary["maps"] == 1
    assert free(wires)


def test_two_interfaces_are_received_from_at_once(wires: Wires) -> None:
    with started("near", "other", "--action", "drop", "--json", "--cpu", "0", "--cpu", "0") as process:
        for pair, count in zip(wires, (300, 700), strict=True):
            with LiveGenerator(pair.far, frame_to_near(pair), rate_pps=20_000) as generator:
                generator.send(count)
        summary = summary_of(process)
    assert {queue["name"]: queue["frames"] for queue in summary["queues"]} == {"near": 300, "other": 700}
    assert "near and other" in summary["source"]
    assert summary["maps"] == 1
    assert "forward" not in summary


def test_the_lines_and_the_summary_say_both_directions(wires: Wires) -> None:
    with started("near", "--forward", "other", "--seconds", "2.5") as process:
        with LiveGenerator(wires[0].far, frame_to_near(wires[0]), rate_pps=20_000) as generator:
            generator.send(1000)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "| near to other: 1,000, 0 refused | other to near: 0, 0 refused" in out
    assert "near to other: 1,000 of 1,000 frames, none copied\nother to near: 0 of 0 frames, none copied\n" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--forward", "other"], "give one IFACE"),
        (["near", "--forward", "near"], "give one IFACE"),
        (["near", "other", "--forward", "near"], "give one IFACE"),
        (["near", "--forward", "other", "--action", "drop"], "leave --action away"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str], word: str) -> None:
    done = rx(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_done_is_one_line(wires: Wires) -> None:
    assert_refused(rx("near", "--forward", "nope0"), "nope0", "no such interface", "near, other")
    assert_refused(rx("near", "other", "nope0"), "nope0", "no such interface")
    assert_refused(rx("near", "--forward", "other", "--queue", "1"), "near has no queue 1")
    done = rx("near", "--forward", "other", "--cpu", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "threads: 2, CPUs: 1" in done.stderr
    assert_refused(rx("near", "--cpu", "9999"), "CPU 9999", "this process may use")
    with AfXdpQueue("other"):
        assert_refused(rx("near", "--forward", "other"), "other", "EBUSY")
    assert free(wires)


def test_killed_in_the_middle_leaves_two_plain_interfaces(wires: Wires) -> None:
    """With frames in every ring: the programs, the sockets and the wish for promiscuity go with the process."""
    generator = LiveGenerator(wires[0].far, frame_to_near(wires[0]))
    with generator, started("near", "--forward", "other", "--json") as process:
        assert process.stdout is not None
        generator.start()
        assert '"frames"' in process.stdout.readline()
        process.kill()
        process.wait(timeout=20)
        generator.stop()
    assert free(wires)
    with open_queues(["near", "other"]) as queues:
        assert len(queues) == 2


def test_the_other_interface_vanishes_in_the_middle(wires: Wires) -> None:
    with started("near", "--forward", "other") as process:
        wires[1].delete()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "near to other: 0 of 0 frames" in out
    assert err.startswith("pagepool: ")
    assert err.count("\n") == 1
    assert "other" in err
    assert xdp_program(wires[0].near) == 0

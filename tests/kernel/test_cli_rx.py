# SPDX-License-Identifier: MIT
"""``pagepool rx`` on a real veth pair: frames, refusals in one line, and nothing left behind however it ends."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, assert_refused, rx, started, summary_of, xdp_program
from elf_writer import counting_program
from pyroute2 import IPRoute

from ntuple_nic import NtupleNic
from pagepool.cli.main import main
from pagepool.cli.plain import PlainReport
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.drivers.capture import read_capture
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

CLONE_NEWNET, SO_NETNS_COOKIE = 0x40000000, 71

# uid 0 with an empty bounding set: a root that may nothing, and can still read the interpreter.
POWERLESS = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


def frame_to_near(veth: VethPair, port: int = 4001) -> bytes:
    near, far = veth.near, veth.far
    return udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4, dst_port=port, length=60)


def summary_while(send: LiveGenerator, count: int, *arguments: str) -> dict[str, Any]:
    """Receive while `send` sends `count` frames; return the summary."""
    with started("near", "--json", *arguments) as process:
        send.send(count)
        return summary_of(process)


def test_every_frame_is_received_counted_and_recycled(veth: VethPair) -> None:
    with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=20_000) as generator:
        summary = summary_while(generator, 10_000, "--action", "drop")
    assert (summary["frames"], summary["lost"]) == (10_000, 0)
    assert summary["bytes"] == 600_000
    assert summary["maps"] == 1
    assert "AF_XDP native" in summary["source"]
    assert xdp_program(veth.near) == 0


def test_frames_go_on_to_the_stack_unless_told_otherwise(veth: VethPair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((veth.near.ipv4, 4001))
        receiver.settimeout(2)
        with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=500) as generator:
            summary = summary_while(generator, 40)  # a few pages each: more would not fit the socket's buffer
        assert summary["action"] == "pass"
        assert summary["frames"] == 40
        for _ in range(40):
            receiver.recv(2048)


def test_filter_leaves_the_rest_to_the_stack(veth: VethPair) -> None:
    with (
        LiveGenerator(veth.far, frame_to_near(veth, port=9), rate_pps=2000) as matching,
        LiveGenerator(veth.far, frame_to_near(veth, port=10), rate_pps=2000) as other,
    ):
        rest = threading.Timer(0, other.send, [700])
        rest.start()
        summary = summary_while(matching, 1000, "--action", "drop", "--filter", "udp port 9")
        rest.join()
    assert summary["frames"] == 1000


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_each_queue_may_have_a_filter_of_its_own(veth: VethPair) -> None:
    """On veth the sending CPU chooses the queue: both ports come to both, and each takes its own."""
    cpus = {cpu % 2: cpu for cpu in sorted(os.sched_getaffinity(0))}
    with started("near", "--filter", "0:udp port 9", "--filter", "1:udp port 10", "--json") as process:
        for cpu in cpus.values():
            for port, count in ((9, 300), (10, 500)):
                with LiveGenerator(veth.far, frame_to_near(veth, port), rate_pps=2000, cpu=cpu) as generator:
                    generator.send(count)
        summary = summary_of(process)
    frames = {queue["queue"]: queue["frames"] for queue in summary["queues"]}
    assert frames == {0: 300, 1: 500 if 1 in cpus else 0}


def test_a_nic_without_flow_rules(veth: VethPair) -> None:
    refused = rx("near", "--steer", "0:udp dst port 53")
    assert_refused(refused, "the driver of near has no flow rules (EOPNOTSUPP); --filter does it in XDP")
    assert_refused(rx("near", "--steer", "3:udp dst port 53"), "near has no queue 3")
    assert xdp_program(veth.near) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("veth", [{"nr_queues": 3}], indirect=True)
def test_flow_rules_are_there_while_it_runs(
    veth: VethPair, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interface is real; its table of rules is a double, for veth has none."""
    nic = NtupleNic(monkeypatch)
    seen = []

    def show(report: PlainReport, now: object) -> None:
        assert xdp_program(veth.near) != 0
        seen.append(dict(nic.table))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(PlainReport, "show", show)
    status = main(["rx", "near", "--steer", "2:udp dst port 53", "--steer", "1:arp"])
    assert status == 0
    assert sorted(queue for _, queue in seen[0].values()) == [1, 2, 2]
    assert (nic.table, nic.is_on) == ({}, False)
    out, err = capsys.readouterr()
    for line in ("'udp dst port 53' to queue 2, by 2 rules", "'arp' to queue 1, by one rule"):
        assert out.count(f"near itself sends {line}\n") == 2  # before the first frame, and in the summary
    assert err == ""


def test_a_flow_rule_that_the_nic_refuses(
    veth: VethPair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nic = NtupleNic(monkeypatch)
    assert main(["rx", "near", "--steer", "0:udp dst port 53", "--steer", "0:ip proto 47"]) == 1
    assert (nic.table, nic.is_on) == ({}, False)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--steer 0:ip proto 47: the driver of near cannot match these fields" in err


def test_sent_back_frames_reach_the_far_end(veth: VethPair) -> None:
    with veth.far.ns:
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with far:
        far.bind((veth.far.ifname, 0x0003))
        far.settimeout(2)
        with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=500) as generator:
            summary = summary_while(generator, 50, "--action", "tx")
        assert summary["frames"] == 50
        for _ in range(50):
            assert far.recv(2048) == frame_to_near(veth)


def test_written_file_holds_the_frames(veth: VethPair, tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=5000) as generator:
        summary = summary_while(generator, 2000, "--action", "drop", "--write", str(path))
    assert summary["capture"] == {"path": str(path), "frames": 2000}
    frames = list(read_capture(path))
    assert [bytes(frame.data) for frame in frames] == [frame_to_near(veth)] * 2000
    assert len({frame.timestamp_ns for frame in frames}) > 1000  # each its own, not the poll's


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_two_queues_share_one_umem(veth: VethPair) -> None:
    with started("near", "--action", "drop", "--queue", "0", "--queue", "1", "--json") as process:
        for cpu in sorted(os.sched_getaffinity(0))[:2]:
            with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=5000, cpu=cpu) as generator:
                generator.send(1000)
        summary = summary_of(process)
    assert summary["frames"] == 1000 * min(2, len(os.sched_getaffinity(0)))
    assert summary["maps"] == 1
    assert [queue["queue"] for queue in summary["queues"]] == [0, 1]


def test_without_an_interface_root_gets_real_af_xdp() -> None:
    done = rx("--seconds", "1", "--rate", "50000", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["source"] == "veth pair in its own namespaces, AF_XDP native, copy"
    assert summary["frames"] > 10_000
    assert summary["sent"] >= summary["frames"] + summary["lost"]
    assert summary["without-pool-estimate"]["measured"]["mapping"]["what"] == "register as UMEM"


def test_wrong_interface(veth: VethPair) -> None:
    assert_refused(rx("nope0"), "nope0", "no such interface", "lo, near")


def test_queue_that_does_not_exist(veth: VethPair) -> None:
    assert_refused(rx("near", "--queue", "3"), "near has no queue 3")
    assert_refused(rx("near", "--queue", str(1 << 32)), "near has no queue 4294967296")
    assert_refused(rx("--queue", str(1 << 40)), f"no frame would reach queue {1 << 40}")
    assert xdp_program(veth.near) == 0


def test_busy_queue(veth: VethPair) -> None:
    with AfXdpQueue("near", 0):
        before = xdp_program(veth.near)
        refused = rx("near")
        assert_refused(refused, "near has an XDP program already (EBUSY): stop the other program")
        assert xdp_program(veth.near) == before != 0


def test_interface_that_is_down(veth: VethPair) -> None:
    with IPRoute() as route:
        route.link("set", index=veth.near.ifindex, state="down")
    assert_refused(rx("near"), "near", "down", "ip link set near up")
    assert xdp_program(veth.near) == 0


def test_no_permission(veth: VethPair) -> None:
    command = [sys.executable, "-c", POWERLESS, *COMMAND, "near"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert_refused(done, "EPERM", "run it as root")


def test_no_permission_without_an_interface_is_the_loopback_nic() -> None:
    command = [sys.executable, "-c", POWERLESS, *COMMAND, "--seconds", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("receiving over loopback NIC")
    assert "EPERM" in done.stdout


def test_a_program_of_the_users(veth: VethPair, tmp_path: Path) -> None:
    path = tmp_path / "counting.o"
    path.write_bytes(counting_program())
    with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        for program in (str(path), f"{path}:program"):
            summary = summary_while(generator, 300, "--action", "drop", "--program", program)
            assert summary["frames"] == 300
    assert_refused(rx("near", "--program", f"{path}:other"), "no XDP program 'other'", "it has program")
    assert_refused(rx("near", "--program", str(tmp_path / "none.o")), "no such file", "none.o")
    assert_refused(rx("near", "--program", __file__), "not an ELF object")
    refused = rx("near", "--program", str(path), "--filter", "udp")
    assert refused.returncode == 2
    assert "leave --filter away" in refused.stderr


def test_filter_that_does_not_parse(veth: VethPair) -> None:
    assert_refused(rx("near", "--filter", "udp prot 9"), "prot", "--filter 'udp port 53'")


def test_interface_that_vanishes(veth: VethPair) -> None:
    with started("near", "--action", "drop") as process:
        veth.delete()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "frames in" in out
    assert err.count("\n") == 1
    assert "near" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_detaches_the_program_and_sums_up(veth: VethPair, number: signal.Signals) -> None:
    with started("near", "--action", "drop") as process:
        assert xdp_program(veth.near) != 0
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert "frames in" in out
    assert xdp_program(veth.near) == 0


def test_sigkill_detaches_the_program_too(veth: VethPair) -> None:
    with started("near", "--action", "drop") as process:
        assert xdp_program(veth.near) != 0
        process.kill()
        process.wait(timeout=20)
    deadline = time.monotonic() + 5  # the kernel closes a killed program's descriptors in its own time
    while xdp_program(veth.near) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert xdp_program(veth.near) == 0
    with AfXdpQueue("near", 0):  # and the queue is free
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_namespaces_of_its_own_vanish_with_it(number: signal.Signals) -> None:
    """A namespace's number is soon another's, in a process that has nothing to do with us; its cookie never is."""
    links = socket.if_nameindex()
    with started("--rate", "10000") as process:
        mine = {cookie for _, cookie in namespaces(str(os.getpid()))}
        theirs = {number: cookie for number, cookie in namespaces(str(process.pid)) if cookie not in mine}
        assert len(theirs) == 2
        process.send_signal(number)
        process.communicate(timeout=20)
    assert socket.if_nameindex() == links
    everybody = [name for name in os.listdir("/proc") if name.isdigit()]
    held = {cookie for name in everybody for _, cookie in namespaces(name, set(theirs))}
    assert not held & set(theirs.values())


def namespaces(process: str, wanted: set[str] | None = None) -> set[tuple[str, int]]:
    """Return number and cookie of the network namespaces that a process is in, or holds by a descriptor."""
    found = set()
    for pattern in ("task/*/ns/net", "fd/*"):
        for path in Path("/proc", process).glob(pattern):
            try:
                target = os.readlink(path)
                if re.fullmatch(r"net:\[\d+\]", target) and (wanted is None or target in wanted):
                    found.add((target, cookie_of(path)))
            except OSError:  # gone meanwhile
                continue
    return found


def cookie_of(namespace: Path) -> int:
    """Return what the kernel calls a network namespace, and will call no other."""
    cookies: list[int] = []

    def ask() -> None:  # in a thread of its own, which ends in that namespace
        with suppress(OSError), namespace.open("rb") as file:  # gone meanwhile
            if ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
                    cookies.append(int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little"))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return cookies[0] if cookies else 0

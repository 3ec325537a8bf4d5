# SPDX-License-Identifier: MIT
"""The kernel as oracle: what its real page_pool did under virtio-net, replayed against ours.

virtio-net is on page_pool in the newest kernel, whose statistics are on. Each test takes a pool from its creation
(the driver is bound anew) to its end, under a load made so that calls never overlap; ours then gets the same calls
and must do the same: same pages, same tiers, same eleven counters. The recordings are printed, for `tests/data`. Real
traffic is the point here, and a little of it is enough: `oracle_driver` goes to the corners.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.testing.recording import Recording
from pagepool.testing.replay import Replay
from pagepool.xdp import XdpAction

from .support.net import bring_up, interface_of
from .support.plan import device
from .support.pool_load import NIC, QUIET_SECONDS, Load, verdict_code
from .support.pool_recorder import PoolRecorder, recordings
from .support.suite import cases

BOOTS = ("newest",)
LIVE_FRAMES = 300


@contextmanager
def recorded(name: str, workload: str) -> Iterator[tuple[Load, list[dict[str, Any]]]]:
    """Bind the driver anew under the recorder; when the block is done unbind it, print and hand out the recording."""
    os.sched_setaffinity(0, {0})  # the driver fills its ring from here
    nic = device(NIC)
    driver = Path("/sys/bus/virtio/drivers/virtio_net")
    function = next((Path("/sys/bus/pci/devices") / nic.bdf).glob("virtio*")).name
    if (driver / function).exists():
        (driver / "unbind").write_text(function)
    made: list[dict[str, Any]] = []
    with PoolRecorder() as recorder:
        (driver / "bind").write_text(function)
        interface = interface_of(nic.mac)
        load = Load(recorder, interface)
        load.interrupts_on(0)
        bring_up(interface)
        time.sleep(QUIET_SECONDS)
        yield load, made
        (driver / "unbind").write_text(function)
        time.sleep(QUIET_SECONDS)
        events = recorder.events()
    (driver / "bind").write_text(function)
    (recording,) = recordings(events)
    made.append(published(name, workload, recording))


def published(name: str, workload: str, recording: dict[str, Any]) -> dict[str, Any]:
    """Complete a recording, and print it for the host to keep."""
    recording = {"kernel": platform.release(), "workload": workload, **recording}
    print("RECORDING", name, base64.b64encode(zlib.compress(json.dumps(recording).encode())).decode())
    return recording


def compare(recording: dict[str, Any]) -> Replay:
    """Replay, and print both sides of every mark."""
    replay = Replay(Recording(**recording), pin=True)
    calls = recording["calls"]
    kinds = {kind: sum(call["call"] == kind for call in calls) for kind in ("alloc", "frag", "put", "mark")}
    print("params", recording["params"], "calls", kinds)
    try:
        replay.run()
    finally:
        for name, (kernels, ours) in replay.marks.items():
            print(f"mark {name}")
            for counter, value in kernels.items():
                print(f"  {counter:<24} kernel {value:>6}  pagepool {ours[counter]:>6}")
    allowed = {name: count for name, count in vars(replay.allowed).items() if count}
    print(f"{replay.compared} values compared, all equal, allowed for: {allowed}")
    return replay


def test_dropped_by_the_stack() -> None:
    with recorded("virtio_dropped", "frames that the stack drops in the poll") as (load, made):
        load.dropped(128)
        load.mark("end")
    compare(made[0])


def test_read_by_a_socket_on_another_cpu() -> None:
    with recorded("virtio_read", "frames read by a socket on another CPU, after each burst") as (load, made):
        load.read(256, cpu=1)
        load.mark("end")
    kernels, _ = compare(made[0]).marks["end"]
    assert kernels["alloc-refill"] > 0


def test_mixed() -> None:
    with recorded("virtio_mixed", "frames dropped and read in turns") as (load, made):
        for turn in range(3):
            load.dropped(32)
            load.read(48, cpu=turn % 2)
            load.mark(f"turn {turn}")
    compare(made[0])


def test_wrong_node_is_waived() -> None:
    """The pool has no node of its own: its pages follow the CPU that polls, one stray page a refill."""
    with recorded("virtio_nodes", "polled on CPU 0 (node 0), then on CPU 1 (node 1)") as (load, made):
        load.read(256, cpu=1)
        load.mark("on node 0")
        load.interrupts_on(1)
        load.read(192, cpu=0)
        load.mark("on node 1")
    kernels, _ = compare(made[0]).marks["on node 1"]
    assert kernels["alloc-waive"] > 0


def test_delivered_to_udp() -> None:
    with recorded("virtio_udp", "frames delivered to a UDP socket that is read on another CPU") as (load, made):
        load.delivered(128, cpu=1)
        load.dropped(1)  # the poll before it frees what was put off
        load.mark("end")
    compare(made[0])


def test_dropped_by_xdp() -> None:
    with recorded("virtio_xdp_drop", "XDP_DROP of every frame") as (load, made):
        with load.xdp(XdpAction.DROP):
            load.dropped(640)
            load.mark("under XDP")
        load.dropped(64)
        load.mark("after XDP")
    compare(made[0])


@cases("drop-10", "pass-256")
def test_live_frames(case: str) -> None:
    """The kernel's own generator of XDP frames has a pool for each run, with a ring as long as its batch."""
    verdict, _, batch_size = case.partition("-")
    nic = device(NIC)
    interface = interface_of(nic.mac)
    bring_up(interface)
    os.sched_setaffinity(0, {0})
    program = XdpProgram(verdict_code(XdpAction[verdict.upper()]))
    with PoolRecorder() as recorder:
        program.run_live(bytes(60), LIVE_FRAMES, ifindex=socket.if_nametoindex(interface), batch_size=int(batch_size))
        time.sleep(QUIET_SECONDS)
        events = recorder.events()
    program.close()
    (recording,) = recordings(events)
    workload = f"BPF_PROG_RUN of {LIVE_FRAMES} live frames, XDP_{verdict.upper()}, {batch_size} a batch"
    compare(published(f"live_{verdict}_{batch_size}", workload, recording))

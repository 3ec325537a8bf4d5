# SPDX-License-Identifier: MIT
"""The kernel as oracle: what its real page_pool did under virtio-net, replayed against ours.

virtio-net is on page_pool in the newest kernel, whose statistics are on. Each test takes a pool from its creation
(the driver is bound anew) to its end, under a load made so that calls never overlap; ours then gets the same calls
and must do the same: same pages, same tiers, same eleven counters. The recordings are printed, for `tests/data`.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import platform
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagepool.drivers.af_xdp.assembler import Assembler, R
from pagepool.drivers.af_xdp.bpf_program import XdpLink, XdpProgram
from pagepool.kernel_pools import KernelPool, kernel_pools
from pagepool.testing.replay import Recording, Replay
from pagepool.xdp import XdpAction

from .support import host
from .support.net import bring_up, interface_of
from .support.plan import device
from .support.pool_recorder import PoolRecorder, recordings
from .support.suite import cases

BOOTS = ("newest",)
NIC = "virtio0"
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
BURST = 64  # frames at once: well under the ring
QUIET_SECONDS, LOST_SECONDS = 0.3, 5.0
LIVE_FRAMES = 600
SIOCSIFADDR = 0x8916


class Load:
    """What a workload does to the NIC, on which CPU its interrupts go, and the marks it leaves in the recording."""

    def __init__(self, recorder: PoolRecorder, interface: str) -> None:
        self.recorder, self.interface = recorder, interface

    def pool(self) -> KernelPool:
        """The kernel's pool of the NIC, as netlink shows it."""
        (found,) = (pool for pool in kernel_pools() if pool.ifname == self.interface)
        return found

    def mark(self, name: str) -> None:
        """Have the kernel's counters of this moment compared too."""
        pool = self.pool()
        self.recorder.mark(name, {**pool.stats, "inflight": pool.inflight})

    def interrupts_on(self, cpu: int) -> None:
        """Poll the NIC on this CPU from now on."""
        for action in Path("/proc/irq").glob("*/virtio*-input*"):
            (action.parent / "smp_affinity_list").write_text(str(cpu))

    def dropped(self, frames: int) -> None:
        """Receive frames that nobody wants: the stack drops them where the NIC is polled."""
        for first in range(0, frames, BURST):
            self._send(first, min(BURST, frames - first))

    def read(self, frames: int, cpu: int) -> None:
        """Receive frames into a socket, then read them all on another CPU: the pages go home from there."""
        os.sched_setaffinity(0, {cpu})
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            sock.bind((self.interface, 0))
            sock.setblocking(False)
            for first in range(0, frames, BURST):
                count = min(BURST, frames - first)
                self._send(first, count)
                _read_all(sock)
        os.sched_setaffinity(0, {0})

    def delivered(self, frames: int, cpu: int) -> None:
        """Receive frames into a UDP socket, read on another CPU: the stack sends the pages home by way of the poll."""
        os.sched_setaffinity(0, {cpu})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("16sHH4s8x", self.interface.encode(), socket.AF_INET, 0, bytes([10, 255, 0, 1]))
            fcntl.ioctl(sock, SIOCSIFADDR, request)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            sock.bind(("10.255.0.1", 2000))
            sock.setblocking(False)
            for first in range(0, frames, BURST):
                count = min(BURST, frames - first)
                self._send(first, count)
                _read_all(sock)
                time.sleep(QUIET_SECONDS)  # what was put off is freed in an interrupt
        os.sched_setaffinity(0, {0})

    @contextmanager
    def xdp(self, action: XdpAction) -> Iterator[None]:
        """Give every frame this verdict meanwhile."""
        with XdpProgram(verdict_code(action)) as program, XdpLink(program, socket.if_nametoindex(self.interface)):
            yield

    def _received(self) -> int:
        return int(Path(f"/sys/class/net/{self.interface}/statistics/rx_packets").read_text())

    def _send(self, first: int, count: int) -> None:
        """Have the host send frames, and wait until they are in and nothing has come for a while."""
        before = last = self._received()
        host.send(NIC, count, first=first).result()
        since = time.monotonic()
        while time.monotonic() - since < (QUIET_SECONDS if last >= before + count else LOST_SECONDS):
            if (now := self._received()) != last:
                last, since = now, time.monotonic()
            time.sleep(0.02)
        if last < before + count:
            print(f"{last - before} of {count} frames came")


def verdict_code(action: XdpAction) -> bytes:
    """Return an XDP program that has the same verdict for all frames."""
    program = Assembler()
    program.alu(R.R0, "=", int(action))
    program.exit()
    return program.code()


def _read_all(sock: socket.socket) -> None:
    try:
        while True:
            sock.recv(2048)
    except BlockingIOError:
        pass


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
    print(f"{replay.compared} values compared, all equal", replay.ended_early)
    return replay


def test_dropped_by_the_stack() -> None:
    with recorded("virtio_dropped", "frames that the stack drops in the poll") as (load, made):
        load.dropped(320)
        load.mark("end")
    compare(made[0])


def test_read_by_a_socket_on_another_cpu() -> None:
    with recorded("virtio_read", "frames read by a socket on another CPU, after each burst") as (load, made):
        load.read(640, cpu=1)
        load.mark("end")
    compare(made[0])


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
        load.delivered(256, cpu=1)
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


@cases("drop-64", "drop-10", "drop-256", "pass-64", "pass-256", "pass-100")
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

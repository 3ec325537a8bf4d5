# SPDX-License-Identifier: MIT
"""One thread and two on two queues: with a NumPy verdict, and forwarding.

Three ways, by what there is besides Python: nothing (`benchmarks.receive.endless`); the kernel that sends, for frames
that wait in the rings before the clock starts (`benchmarks.receive.drained`); the kernel that receives, and a sender on
each thread's own CPU (`benchmarks.receive.own_sender`). On an interpreter with a GIL a verdict runs under it, and the
kernel's share does not.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial

import numpy as np

from benchmarks.quiet import real_time
from benchmarks.receive.arrivals import Arrivals
from benchmarks.receive.drained import Drained, Way, drain_in_turns
from benchmarks.receive.endless import look_in_turns
from benchmarks.receive.own_sender import receive_in_turns
from benchmarks.setting import Setting
from pagepool.drivers.af_xdp import AfXdpQueue, open_queues
from pagepool.drivers.bridge import Bridge
from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

__all__ = ["queue_rows"]

_RING = 8192
_SPARE = 64  # the last frames of a full ring come late
_SEND_CHUNK = 1 << 21  # frames a system call: between two of them a live sender idles for some 20 ms
_LOOK_S = 0.3
_LIVE_S = 0.6  # nobody else gets a CPU meanwhile
_LOOK_BUDGETS = (64, 256, 1024, 4096)
_FORWARD_BUDGETS = (64, 256)
_LIVE_BUDGETS = (64, 256)


def queue_rows(setting: Setting) -> list[Drained]:
    """Drain, with all budgets; none, and a note why, where it cannot be done."""
    cpus = {cpu % 2: cpu for cpu in (*setting.where.others, setting.where.cpu)}
    if len(cpus) < 2:
        setting.notes.append("no rows of two queues: two threads need two CPUs, an even and an odd one")
        return []
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    setting.notes.append(f"two queues: the interpreter runs {'with' if gil else 'without'} a GIL")
    with real_time(1) as allowed:
        if not allowed:
            setting.notes.append("two queues: no real-time priorities; live frames show the scheduler's time slices")
    try:
        return _rows(setting, (cpus[0], cpus[1]))
    except DeviceError as error:
        setting.notes.append(f"no rows of two queues: {error}")
        return []


def _rows(setting: Setting, cpus: tuple[int, int]) -> list[Drained]:
    with ExitStack() as stack:
        pair = stack.enter_context(VethPair(nr_queues=2, gro=True))
        out = stack.enter_context(VethPair(nr_queues=2, gro=True, near_name="other", near_ns=pair.near.ns))
        with out.far.ns:
            stack.enter_context(Arrivals(out.far.ifname))
        with pair.near.ns:
            queues = stack.enter_context(open_queues(["near", "other"], rx_ring=_RING, tx_ring=2048))
        frame = udp_frame(src=pair.far.mac, dst=out.far.mac, src_ip=pair.far.ipv4, dst_ip=out.far.ipv4, length=60)
        usable = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set(cpus))  # on veth the sender's CPU decides the queue
        stack.callback(os.sched_setaffinity, 0, usable)
        senders = [
            stack.enter_context(LiveGenerator(pair.far, frame, cpu=cpu, chunk_frames=_SEND_CHUNK)) for cpu in cpus
        ]
        looked = look_in_turns(
            frame,
            _judge,
            _LOOK_BUDGETS,
            rounds=setting.passes,
            seconds=_LOOK_S,
            cpus=cpus,
            progress=setting.progress,
        )
        drained = drain_in_turns(_ways(queues, senders), setting.rounds, cpus, setting.progress)
        live = receive_in_turns(
            queues,
            senders,
            _judge,
            _LIVE_BUDGETS,
            rounds=setting.passes,
            seconds=_LIVE_S,
            cpus=cpus,
            progress=setting.progress,
        )
        return looked + drained + live


def _ways(queues: list[AfXdpQueue], senders: list[LiveGenerator]) -> list[Way]:
    bridges = [Bridge(queues[number], queues[number + 2]) for number in (0, 1)]

    def fill() -> int:
        for sender in senders:
            sender.send(_RING - _SPARE)
        return _RING - _SPARE

    def forward_all(budget: int, number: int, frames: int) -> None:
        for queue in bridges[number].queues:
            queue.claim()
        while frames > 0:
            frames -= bridges[number].poll(budget)

    return [Way(f"forward {budget}", fill, partial(forward_all, budget)) for budget in _FORWARD_BUDGETS]


def _judge(batch: XdpBatch) -> None:
    headers = batch.headers(24)
    udp = (headers.field(12, ">u2") == 0x0800) & (headers[:, 23] == 17)
    batch.drop(udp)
    np.count_nonzero(udp)

# SPDX-License-Identifier: MIT
"""Forwarding between two veth pairs, beside a Python AF_PACKET bridge.

Live XDP frames come in on one pair; what arrives at the far end of the other is counted by an XDP program there, so
that no bridge is taken at its word. One direction is busy; both are open.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks.peers.build import PeerError
from benchmarks.receive.arrivals import Arrivals
from benchmarks.receive.bridges import BRIDGES, OTHER
from benchmarks.receive.passes import Received, Receiver, run_passes
from benchmarks.setting import Setting
from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

__all__ = ["PLAIN_BRIDGE", "forward_rows"]

PLAIN_BRIDGE = "AF_PACKET bridge"
_CHUNK = 1 << 20


def forward_rows(setting: Setting) -> list[Received]:
    """Run all bridges; none, and a note why, where AF_XDP cannot be had."""
    try:
        return _rows(setting)
    except (DeviceError, PeerError) as error:
        setting.notes.append(f"no forwarding rows: {error}")
        return []


def _rows(setting: Setting) -> list[Received]:
    programs = [Receiver(name, (sys.executable, "-m", "benchmarks.receive.bridges", name, "{}")) for name in BRIDGES]
    with ExitStack() as stack:
        pair = stack.enter_context(VethPair(gro=True))
        out = stack.enter_context(VethPair(gro=True, near_name=OTHER, near_ns=pair.near.ns))
        with out.far.ns:
            arrivals = stack.enter_context(Arrivals(out.far.ifname))
        frame = udp_frame(src=pair.far.mac, dst=out.far.mac, src_ip=pair.far.ipv4, dst_ip=out.far.ipv4, length=60)
        sender = setting.where.others[0]
        live = stack.enter_context(LiveGenerator(pair.far, frame, cpu=sender, chunk_frames=_CHUNK))
        return run_passes(
            pair,
            live,
            programs,
            generator_name="live XDP frames",
            passes=setting.passes,
            seconds=setting.receive_s,
            chunk_frames=_CHUNK,
            cpu=setting.where.cpu,
            progress=setting.progress,
            arrived=lambda: arrivals.frames,
        )

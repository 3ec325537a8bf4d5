# SPDX-License-Identifier: MIT
"""AF_XDP receive on a veth pair, beside a C receiver on the same rings and a plain AF_PACKET loop.

Two generators, because they answer different questions: live XDP frames (no skb, the receivers are the limit)
and an AF_PACKET sender (each frame is an skb, the kernel is the limit and all ratios shrink). Every frame is
asked the same thing by every receiver: is it UDP over IPv4?
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.peers.build import PeerError, build_peer
from benchmarks.receive.passes import Received, Receiver, python_receiver, run_passes
from benchmarks.receive.receivers import RECEIVERS
from benchmarks.setting import Setting
from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import Generator, LiveGenerator
from pagepool.testing.packet_generator import PacketGenerator
from pagepool.testing.veth import VethPair

__all__ = ["C_RECEIVERS", "LIVE", "PACKET", "PLAIN", "receive_rows"]

LIVE = "live XDP frames"
PACKET = "AF_PACKET sendmmsg"
PLAIN = "AF_PACKET recv"
_FRAME_BYTES = 60  # a "64-byte frame", as software sees it
_LIVE_CHUNK = 1 << 20  # a live call idles 20 ms: as few as will do
_PACKET_CHUNK = 1 << 16
C_RECEIVERS = {f"C {mode} {budget}": (mode, str(budget)) for mode in ("spin", "poll") for budget in (64, 256)}
_WITH_SKBS = ("C spin 64", "C poll 64", "pagepool spin 64", "pagepool poll 64", PLAIN)


def receive_rows(setting: Setting) -> list[Received]:
    """Run all receivers; none, and a note why, where AF_XDP cannot be had."""
    try:
        return _rows(setting, _receivers(setting))
    except (DeviceError, PeerError) as error:
        setting.notes.append(f"no AF_XDP rows: {error}")
        return []


def _receivers(setting: Setting) -> list[Receiver]:
    in_python = [python_receiver(name) for name in RECEIVERS]
    try:
        program = str(build_peer("xsk_rx"))
    except PeerError as error:
        setting.notes.append(f"no C receiver: {error}")
        return in_python
    in_c = {name: Receiver(name, (program, "{}", *how)) for name, how in C_RECEIVERS.items()}
    # What is compared runs next to each other: C spin 64, pagepool spin 64, C spin 256, ...
    ordered = []
    for receiver in in_python:
        peer = in_c.get(receiver.name.replace("pagepool", "C", 1))
        ordered += [receiver] if peer is None else [peer, receiver]
    return ordered


def _rows(setting: Setting, receivers: list[Receiver]) -> list[Received]:
    with ExitStack() as stack:
        pair = stack.enter_context(VethPair(gro=True))
        frame = udp_frame(
            src=pair.far.mac,
            dst=pair.near.mac,
            src_ip=pair.far.ipv4,
            dst_ip=pair.near.ipv4,
            length=_FRAME_BYTES,
        )
        sender = setting.where.others[0]
        live = stack.enter_context(LiveGenerator(pair.far, frame, cpu=sender, chunk_frames=_LIVE_CHUNK))
        packet = stack.enter_context(PacketGenerator(pair.far, frame, cpu=sender))
        with_skbs = [receiver for receiver in receivers if receiver.name in _WITH_SKBS]
        return [
            *_run(setting, pair, live, LIVE, receivers, _LIVE_CHUNK),
            *_run(setting, pair, packet, PACKET, with_skbs, _PACKET_CHUNK),
        ]


def _run(
    setting: Setting, pair: VethPair, generator: Generator, name: str, receivers: list[Receiver], chunk: int
) -> list[Received]:
    return run_passes(
        pair,
        generator,
        receivers,
        generator_name=name,
        passes=setting.passes,
        seconds=setting.receive_s,
        chunk_frames=chunk,
        cpu=setting.where.cpu,
        progress=setting.progress,
    )

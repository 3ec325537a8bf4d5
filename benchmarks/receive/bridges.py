# SPDX-License-Identifier: MIT
"""``python -m benchmarks.receive.bridges NAME IFNAME``: forward between IFNAME and ``other``, in a process of its own.

The protocol is that of `benchmarks.receive.receivers`: "ready", SIGTERM, one line of JSON.
"""

from __future__ import annotations

import gc
import json
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from pagepool.drivers.af_xdp import open_queues
from pagepool.drivers.bridge import Bridge

__all__ = ["BRIDGES", "OTHER"]

OTHER = "other"
_ETH_P_ALL = 3
_FRAME_BYTES = 2048
_Figures = dict[str, int]


class _Stop(BaseException):
    """SIGTERM."""


def _ready() -> None:
    gc.collect()
    gc.disable()
    print("ready", flush=True)


def _pagepool(budget: int, *, spin: bool) -> Callable[[str, _Figures], None]:
    def forward(ifname: str, figures: _Figures) -> None:
        with open_queues([ifname, OTHER]) as (a, b):
            bridge = Bridge(a, b)
            try:
                _ready()
                while spin:
                    bridge.poll(budget)
                bridge.run(budget=budget)
            finally:
                way = bridge.stats().a_to_b
                figures["frames"], figures["copied"] = way.forwarded, way.copied

    return forward


def _packet_bridge(ifname: str, figures: _Figures) -> None:
    """What one would write without it: a thread for each direction, recv_into and send."""
    sockets = []
    for name in (ifname, OTHER):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.bind((name, _ETH_P_ALL))
        sockets.append(sock)

    def carry(source: Any, target: Any, count: str) -> None:
        buffer = bytearray(_FRAME_BYTES)
        view = memoryview(buffer)
        while True:
            size, (_, _, kind, *_) = source.recvfrom_into(buffer)
            if kind != socket.PACKET_OUTGOING:  # what the other thread has just sent
                try:
                    target.send(view[:size])
                except OSError:  # no room: dropped
                    continue
                figures[count] += 1

    figures["back"] = 0
    back = threading.Thread(target=carry, args=(sockets[1], sockets[0], "back"), daemon=True)
    back.start()
    _ready()
    carry(sockets[0], sockets[1], "frames")


#: Name in the table, what runs it.
BRIDGES: dict[str, Callable[[str, _Figures], None]] = {
    "Bridge 64": _pagepool(64, spin=False),
    "Bridge 256": _pagepool(256, spin=False),
    "Bridge.poll 64": _pagepool(64, spin=True),
    "Bridge.poll 256": _pagepool(256, spin=True),
    "AF_PACKET bridge": _packet_bridge,
}


def main(arguments: Iterable[str]) -> None:
    """Forward until SIGTERM; report."""
    name, ifname = arguments
    figures = {"frames": 0, "copied": 0}

    def stop(number: int, frame: object) -> None:
        raise _Stop

    signal.signal(signal.SIGTERM, stop)
    before = time.process_time()
    try:
        BRIDGES[name](ifname, figures)
    except _Stop:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**figures, "cpu_s": used.ru_utime + used.ru_stime - before}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

# SPDX-License-Identifier: MIT
"""``python -m benchmarks.receive.receivers NAME IFNAME``: one receiver, in a process of its own.

It says "ready" when it receives, and on SIGTERM answers with one line of JSON, as the C receiver does. All of
them ask the same of each frame: is it UDP over IPv4?
"""

from __future__ import annotations

import gc
import json
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.receive.arrivals import Arrivals
from pagepool import PagePool
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.xdp import XdpAction, XdpBatch, XdpBuff, per_frame

__all__ = ["RECEIVERS"]

_ETH_P_ALL = 3
_UDP = 17
_FRAME_BYTES = 2048


class _Stop(BaseException):
    """SIGTERM: the generator is done, say what came."""


class Count:
    """Frames seen, and how many of them were UDP over IPv4."""

    def __init__(self) -> None:
        self.frames = 0
        self.matched = 0


def _ready() -> None:
    gc.collect()
    gc.disable()
    print("ready", flush=True)


def _xdp_drop(ifname: str, count: Count) -> None:
    """Drop in the kernel and count there: what the generator and the device can do at most."""
    with Arrivals(ifname) as arrivals:
        _ready()
        try:
            while True:
                signal.pause()
        finally:
            count.frames = count.matched = arrivals.frames


def _judge(batch: XdpBatch, count: Count) -> None:
    headers = batch.headers(24)
    udp = (headers.field(12, ">u2") == 0x0800) & (headers[:, 23] == _UDP)
    batch.drop(udp)
    count.frames += len(batch)
    count.matched += int(np.count_nonzero(udp))


def _poll(budget: int) -> Callable[[str, Count], None]:
    def receive(ifname: str, count: Count) -> None:
        with AfXdpQueue(ifname) as queue:
            _ready()
            for batch in queue.poll_forever(budget):
                _judge(batch, count)

    return receive


def _spin(budget: int) -> Callable[[str, Count], None]:
    def receive(ifname: str, count: Count) -> None:
        with AfXdpQueue(ifname) as queue:
            _ready()
            while True:
                batch = queue.poll(budget)
                if batch is not None:
                    _judge(batch, count)

    return receive


def _per_frame(ifname: str, count: Count) -> None:
    def judge(buff: XdpBuff) -> XdpAction:
        frame = buff.data
        count.frames += 1
        if frame[12] == 0x08 and frame[13] == 0x00 and frame[23] == _UDP:
            count.matched += 1
        return XdpAction.DROP

    with AfXdpQueue(ifname) as queue:
        _ready()
        queue.run(per_frame(judge))


def _packet_socket(ifname: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.bind((ifname, _ETH_P_ALL))
    return sock


def _recv(ifname: str, count: Count) -> None:
    with _packet_socket(ifname) as sock:
        _ready()
        while True:
            frame = sock.recv(_FRAME_BYTES)
            count.frames += 1
            if frame[12] == 0x08 and frame[13] == 0x00 and frame[23] == _UDP:
                count.matched += 1


def _recv_into(ifname: str, count: Count) -> None:
    with _packet_socket(ifname) as sock, PagePool() as pool:
        _ready()
        while True:
            page: Any = pool.alloc_pages()
            sock.recv_into(page)
            count.frames += 1
            if page[12] == 0x08 and page[13] == 0x00 and page[23] == _UDP:
                count.matched += 1
            pool.put_page(page)


#: Name in the table, what runs it.
RECEIVERS: dict[str, Callable[[str, Count], None]] = {
    "XDP_DROP in the kernel": _xdp_drop,
    "pagepool spin 64": _spin(64),
    "pagepool spin 256": _spin(256),
    "pagepool poll 64": _poll(64),
    "pagepool poll 256": _poll(256),
    "pagepool per frame": _per_frame,
    "AF_PACKET recv": _recv,
    "AF_PACKET recv_into a page": _recv_into,
}


def main(arguments: Iterable[str]) -> None:
    """Receive until SIGTERM; report."""
    name, ifname = arguments
    count = Count()

    def stop(number: int, frame: object) -> None:
        raise _Stop

    signal.signal(signal.SIGTERM, stop)
    before = time.process_time()
    try:
        RECEIVERS[name](ifname, count)
    except _Stop:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - before
    print(json.dumps({"frames": count.frames, "matched": count.matched, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(sys.argv[1:])

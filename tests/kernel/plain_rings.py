# SPDX-License-Identifier: MIT
"""The slowest possible AF_XDP receiver, in plain ctypes: checks the sockets without the compiled rings."""

from __future__ import annotations

import ctypes
import mmap
import time

from pagepool.drivers.af_xdp.ring_map import RingMap
from pagepool.drivers.af_xdp.socket import BindFlag, RingSizes, XdpSocket
from pagepool.drivers.af_xdp.steering import Steering, WantedMode

CHUNK_BYTES = 4096


class Umem:
    """Anonymous memory with a vaddr."""

    def __init__(self, nr_chunks: int = 64) -> None:
        self.size_bytes = nr_chunks * CHUNK_BYTES
        self.map = mmap.mmap(-1, self.size_bytes)
        self._hold = ctypes.c_char.from_buffer(self.map)
        self.vaddr = ctypes.addressof(self._hold)

    def close(self) -> None:
        del self._hold
        self.map.close()


def word(vaddr: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(vaddr)


def fill(ring: RingMap, chunks: list[int]) -> None:
    """Give the kernel chunks to receive into, by their offset in the UMEM."""
    producer = word(ring.producer)
    for at in chunks:
        slot = ring.descriptors + 8 * (producer.value % ring.nr_entries)
        ctypes.c_uint64.from_address(slot).value = at
        producer.value += 1


def received(ring: RingMap, umem: Umem, count: int, timeout: float = 2.0) -> list[bytes]:
    """Return the frames of the rx ring, once there are ``count`` or ``timeout`` seconds have passed."""
    producer, consumer = word(ring.producer), word(ring.consumer)
    deadline = time.monotonic() + timeout
    frames: list[bytes] = []
    while len(frames) < count and time.monotonic() < deadline:
        if consumer.value == producer.value:
            time.sleep(0.001)
            continue
        slot = ring.descriptors + 16 * (consumer.value % ring.nr_entries)
        at = ctypes.c_uint64.from_address(slot).value
        frames.append(umem.map[at : at + word(slot + 8).value])
        consumer.value += 1
    return frames


def steer(ifindex: int, filter: str = "all", mode: WantedMode = "auto", ifname: str = "near") -> Steering:
    """Attach a steering program of its own, past the sharing by interface."""
    return Steering(ifname, ifindex, filter, mode, program=None, owns=False)


SMALL = RingSizes(rx=64, tx=64, fill=64, completion=64)


def bound_socket(umem: Umem, ifindex: int, queue: int = 0, flags: BindFlag = BindFlag.COPY) -> XdpSocket:
    """Return a socket over ``umem``, bound, its fill ring empty."""
    xsk = XdpSocket(f"queue {queue}")
    try:
        xsk.register_umem(umem.vaddr, umem.size_bytes)
        xsk.set_rings(SMALL)
        xsk.bind(ifindex, queue, flags)
    except BaseException:
        xsk.close()
        raise
    return xsk

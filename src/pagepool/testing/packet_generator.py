# SPDX-License-Identifier: MIT
"""Traffic out of a device by an AF_PACKET socket: what an ordinary program reaches.

The counterpart of `pagepool.testing.generator.LiveGenerator` with the same interface, for the honest second
row of a benchmark: each frame is an skb, so the kernel's own work per frame is part of what is measured.

Sources: packet(7), sendmmsg(2).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time

from pagepool.errors import DeviceError
from pagepool.testing.generator import SRC_PORT_OFFSET, Generator
from pagepool.testing.veth import VethEnd

__all__ = ["PacketGenerator"]

_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """``struct mmsghdr``."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.POINTER(_Vector)),
        ("nr_vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("length", ctypes.c_uint32),
    )


class PacketGenerator(Generator):
    """The same frames from an AF_PACKET socket by sendmmsg(2), 64 per call, past the queueing discipline."""

    _BURST = 64

    def __init__(
        self,
        end: VethEnd,
        frame: bytes,
        *,
        rate_pps: float | None = None,
        nr_flows: int = 1,
        cpu: int | None = None,
    ) -> None:
        super().__init__(end, frame, rate_pps=rate_pps, nr_flows=nr_flows, cpu=cpu)
        self._sent = 0
        with end.ns:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind((end.ifname, 0))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        # As many messages as both a burst and whole rounds of the flows need.
        self._nr_messages = max(self._BURST, nr_flows)
        self._messages = (_Message * self._nr_messages)()
        self._buffers = []
        for index, message in enumerate(self._messages):
            copy = bytearray(frame)
            if nr_flows > 1:
                (port,) = struct.unpack_from("!H", copy, SRC_PORT_OFFSET)
                struct.pack_into("!H", copy, SRC_PORT_OFFSET, port + index % nr_flows)
            array = (ctypes.c_char * len(copy)).from_buffer(copy)
            vector = _Vector(ctypes.addressof(array), len(copy))
            message.vector, message.nr_vectors = ctypes.pointer(vector), 1
            self._buffers.append((array, vector))

    @property
    def sent(self) -> int:
        return self._sent

    def _send_chunk(self, count: int) -> None:
        start, before = time.monotonic(), self._sent
        while (done := self._sent - before) < count and not self._stop.is_set():
            if self.rate_pps:
                time.sleep(max(0.0, start + done / self.rate_pps - time.monotonic()))
            burst = min(self._BURST, count - done)
            first = self._sent % self.nr_flows if self.nr_flows > 1 else 0
            burst = min(burst, self._nr_messages - first)
            out = _libc.sendmmsg(self._socket.fileno(), ctypes.byref(self._messages[first]), burst, 0)
            if out < 0:
                error = ctypes.get_errno()
                if error not in (errno.EINTR, errno.ENOBUFS, errno.EAGAIN):
                    raise DeviceError(error, "sendmmsg", self.end.ifname)
                continue
            self._sent += out

    def close(self) -> None:
        self.stop()
        self._socket.close()

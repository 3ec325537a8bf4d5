# SPDX-License-Identifier: MIT
"""The host's end of a NIC's cable: sends test frames into the guest and checks what comes back.

One UDP datagram over loopback is one frame (QEMU's ``-netdev dgram``). The two sockets are made here and
connected to each other, and QEMU gets its one as an open file: there is no port to agree on, and none to
collide with another rig's. Unix datagram sockets would be simpler still, but hold only ten frames and then
drop.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from ..guest.support.frames import HOST_MAC, echo_of, make_frame

SOCKET_BUFFER_BYTES = 4 << 20
# Emulation on a busy machine stalls for seconds: a frame counts as lost when nothing came for so long.
QUIET_SECONDS = 60.0
ETHERTYPE_IPV4 = b"\x08\x00"


def is_ipv4(frame: bytes) -> bool:
    """Whether it is one of ours, and not one that a kernel sends of its own accord."""
    return frame[12:14] == ETHERTYPE_IPV4


class FramePort:
    """A cable: ``fileno_for_qemu`` goes to QEMU, frames go in and out here.

    Parameters
    ----------
    mac : str
        Ethernet address of the NIC at the other end.

    Context: calls may come from any thread; one at a time uses the port.
    """

    def __init__(self, mac: str) -> None:
        self.destination = bytes.fromhex(mac.replace(":", ""))
        self._ours, self._qemus = _connected_pair()
        self._ours.settimeout(QUIET_SECONDS)
        self._busy = threading.Lock()

    def fileno(self) -> int:
        """Return our end, for ``select``."""
        return self._ours.fileno()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the port for oneself, without frames of before."""
        with self._busy:
            self._drop_old_frames()
            yield

    def send_frame(self, frame: bytes) -> None:
        """Send one frame; inside `alone`."""
        self._ours.send(frame)

    def receive_frame(self) -> bytes:
        """Return the next frame, whatever it is, b"" after a long quiet; inside `alone`."""
        try:
            return self._ours.recv(65536)
        except OSError:  # a time-out, or the port was closed, or QEMU is gone
            return b""

    def fileno_for_qemu(self) -> int:
        """Return the file descriptor that QEMU is to inherit."""
        return self._qemus.fileno()

    def close_qemus_end(self) -> None:
        """Close our copy of QEMU's end, once QEMU has its own."""
        self._qemus.close()

    def close(self) -> None:
        """Pull the cable: a call that waits for frames ends with what it has."""
        self._qemus.close()
        self._ours.close()

    def inject(self, count: int, window: int, seed: int, min_bytes: int, max_bytes: int) -> dict[str, float]:
        """Send frames, at most ``window`` under way, and match what comes back with `echo_of` each."""
        with self.alone():
            started = time.monotonic()
            frames = iter(self._frames(0, count, seed, min_bytes, max_bytes))
            awaited: set[bytes] = set()
            echoed = wrong = 0
            exhausted = False
            while True:
                while not exhausted and len(awaited) < window:
                    frame = next(frames, None)
                    if frame is None:
                        exhausted = True
                    else:
                        awaited.add(echo_of(frame))
                        self._ours.send(frame)
                if not awaited:
                    break
                back = self._receive()
                if back is None:
                    break
                if back in awaited:
                    awaited.remove(back)
                    echoed += 1
                else:
                    wrong += 1
            seconds = round(time.monotonic() - started, 3)
            return {"echoed": echoed, "wrong": wrong, "lost": count - echoed, "seconds": seconds}

    def send(self, first: int, count: int, seed: int, min_bytes: int, max_bytes: int) -> dict[str, float]:
        """Send frames at once and do not wait for any."""
        with self._busy:
            for frame in self._frames(first, count, seed, min_bytes, max_bytes):
                self._ours.send(frame)
            return {"sent": count}

    def expect(self, count: int, seed: int, min_bytes: int, max_bytes: int) -> dict[str, float]:
        """Wait for the frames of ``seed`` that the guest makes up by itself, addressed to the host."""
        with self._busy:
            frames = {make_frame(i, seed=seed, min_bytes=min_bytes, max_bytes=max_bytes)[12:] for i in range(count)}
            exact = wrong = 0
            while frames:
                frame = self._receive()
                if frame is None:
                    break
                if frame[12:] in frames and frame[:6] == HOST_MAC:
                    frames.remove(frame[12:])
                    exact += 1
                else:
                    wrong += 1
            return {"exact": exact, "wrong": wrong, "lost": len(frames)}

    def _frames(self, first: int, count: int, seed: int, min_bytes: int, max_bytes: int) -> Iterable[bytes]:
        for index in range(first, first + count):
            yield make_frame(index, seed=seed, destination=self.destination, min_bytes=min_bytes, max_bytes=max_bytes)

    def _receive(self) -> bytes | None:
        """Return the next IPv4 frame, None after a long quiet; kernels send others of their own accord."""
        while frame := self.receive_frame():
            if is_ipv4(frame):
                return frame
        return None

    def _drop_old_frames(self) -> None:
        self._ours.setblocking(False)
        try:
            while True:
                self._ours.recv(65536)
        except OSError:
            pass
        self._ours.settimeout(QUIET_SECONDS)


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return two UDP sockets on loopback, each of which hears only the other."""
    pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        end.bind(("127.0.0.1", 0))
    pair[0].connect(pair[1].getsockname())
    pair[1].connect(pair[0].getsockname())
    return pair[0], pair[1]

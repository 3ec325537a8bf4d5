# SPDX-License-Identifier: MIT
"""Loads for a NIC whose page pool is being recorded: made so that calls of the pool never overlap in time.

Frames come in bursts; when all are in and nothing more has come for a while, what a reader frees it frees alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagepool.drivers.af_xdp.assembler import Assembler, R
from pagepool.drivers.af_xdp.bpf_program import XdpLink, XdpProgram
from pagepool.kernel_pools import KernelPool, kernel_pools
from pagepool.xdp import XdpAction

from . import host
from .pool_recorder import PoolRecorder

NIC = "virtio0"
ETH_P_ALL, SO_RCVBUFFORCE, SIOCSIFADDR = 3, 33, 0x8916
BURST = 64  # frames at once: well under the ring
QUIET_SECONDS, LOST_SECONDS = 0.3, 5.0


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

# SPDX-License-Identifier: MIT
"""Traffic out of a device by live XDP frames.

`LiveGenerator` has the kernel make the frames (``BPF_PROG_TEST_RUN``) and send them with ``XDP_TX``: millions
a second from one system call, an exact count, any bytes. `pagepool.testing.packet_generator` sends the same
frames as an ordinary program would; every published rate should name its generator, for with skb traffic the
kernel is the limit and not the receiver.

Source: Documentation/bpf/bpf_prog_run.rst.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Self

from pagepool.drivers.af_xdp.assembler import Assembler, Helper, R, Size
from pagepool.drivers.af_xdp.bpf import ArrayMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.errors import DeviceError
from pagepool.testing.frames import UDP_PAYLOAD_OFFSET
from pagepool.testing.veth import VethEnd

__all__ = ["SRC_PORT_OFFSET", "Generator", "LiveGenerator"]

_CHUNK_FRAMES: Final = 1 << 18
SRC_PORT_OFFSET: Final = 34  # Ethernet 14 + IPv4 20
_SPIN_LIMIT_NS = 60_000
_SPINS = 2000
_XDP_TX = 3


class Generator(ABC):
    """Sends copies of one frame out of ``end``, as many as told or until stopped.

    Parameters
    ----------
    end : VethEnd
        The device to send from; the calls enter its namespace themselves.
    frame : bytes
        A UDP frame of :func:`pagepool.testing.frames.udp_frame` if ``nr_flows`` or ``sequence`` rewrite it.
    rate_pps : float, optional
        Frames per second at most; None for as fast as it goes.
    nr_flows : int
        Frame i gets source port (port of ``frame``) + i modulo ``nr_flows``.
    cpu : int, optional
        Pin the sending thread: on veth the CPU decides the receive queue of a live frame.
    chunk_frames : int
        Frames per system call at most. A live call idles about 20 ms, and `stop` waits for one.
    """

    def __init__(
        self,
        end: VethEnd,
        frame: bytes,
        *,
        rate_pps: float | None = None,
        nr_flows: int = 1,
        cpu: int | None = None,
        chunk_frames: int = _CHUNK_FRAMES,
    ) -> None:
        self.end = end
        self.frame = frame
        self.rate_pps = rate_pps
        self.nr_flows = nr_flows
        self._cpu = cpu
        self._chunk_frames = chunk_frames
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    @abstractmethod
    def sent(self) -> int:
        """Frames sent since the generator was made."""

    @abstractmethod
    def _send_chunk(self, count: int) -> None:
        """Send ``count`` frames at once, inside the namespace."""

    @abstractmethod
    def close(self) -> None:
        """Stop and give everything back. Idempotent."""

    def send(self, count: int) -> int:
        """Send exactly ``count`` frames and return when they are out; the result is ``count``.

        Context: blocks mostly without the GIL; `stop` from another thread ends it early.
        """
        before = self.sent
        affinity = os.sched_getaffinity(0)
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})
        try:
            with self.end.ns:
                while not self._stop.is_set() and (done := self.sent - before) < count:
                    self._send_chunk(min(count - done, self._chunk_frames))
        finally:
            if self._cpu is not None:
                os.sched_setaffinity(0, affinity)
        return self.sent - before

    def start(self, count: int = 1 << 62) -> None:
        """Send ``count`` frames from a thread of its own."""
        if not self.join(0):
            raise RuntimeError("the generator is running already")

        def run() -> None:
            try:
                self.send(count)
            except BaseException as error:
                self._failure = error

        self._stop.clear()
        self._thread = threading.Thread(target=run, name="pagepool-generator", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all is sent; return whether it is. Raises what the sending thread raised."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def stop(self) -> None:
        """Stop after the present system call (some 100 ms) and wait for it."""
        self._stop.set()
        try:
            self.join()
        finally:
            self._stop.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LiveGenerator(Generator):
    """Live XDP frames: 5 million a second and more, from the kernel, without skbs.

    Parameters are those of `Generator`, and:

    sequence : bool
        Write the number of the frame, 32 bits big-endian, as the first word of the UDP payload.

    Notes
    -----
    The receiving end drops such frames unless it has an XDP program or GRO on. A rate is kept by the program
    itself (it spins up to about 100 us per frame); slower rates send frame by frame with sleeps between.
    """

    def __init__(
        self,
        end: VethEnd,
        frame: bytes,
        *,
        rate_pps: float | None = None,
        nr_flows: int = 1,
        sequence: bool = False,
        cpu: int | None = None,
        chunk_frames: int = _CHUNK_FRAMES,
    ) -> None:
        super().__init__(end, frame, rate_pps=rate_pps, nr_flows=nr_flows, cpu=cpu, chunk_frames=chunk_frames)
        self._count = ArrayMap(1, "pp_gen_count")
        self._due = ArrayMap(1, "pp_gen_due")
        (src_port,) = struct.unpack_from("!H", frame, SRC_PORT_OFFSET) if len(frame) >= 36 else (0,)
        interval_ns = int(1e9 / rate_pps) if rate_pps else 0
        self._sleep_s = interval_ns / 1e9 if interval_ns > _SPIN_LIMIT_NS else 0.0
        if self._sleep_s:
            interval_ns = 0
        self._batch_size = max(1, min(64, 200_000 // interval_ns)) if interval_ns else 64
        self._interval_ns = interval_ns
        code = _sender_code(self._count, self._due, src_port, nr_flows, sequence=sequence, interval_ns=interval_ns)
        self._program = XdpProgram(code, "pp_generator")

    @property
    def sent(self) -> int:
        return self._count[0] if self._count.fileno() >= 0 else self._sent

    def _send_chunk(self, count: int) -> None:
        if self._interval_ns:
            count = min(count, max(1, 100_000_000 // self._interval_ns))
            self._due[0] = time.monotonic_ns()
        if self._sleep_s:
            count = 1
            time.sleep(self._sleep_s)
        try:
            self._program.run_live(self.frame, count, ifindex=self.end.ifindex, batch_size=self._batch_size)
        except DeviceError as error:
            if error.errno != errno.EINTR:  # a signal: `sent` knows how far it got
                raise

    def close(self) -> None:
        self.stop()
        self._sent = self.sent
        for part in (self._program, self._count, self._due):
            part.close()


def _sender_code(
    count: ArrayMap, due: ArrayMap, src_port: int, nr_flows: int, *, sequence: bool, interval_ns: int
) -> bytes:
    """Assemble the program that numbers, paces and sends each frame. R6 context, R7 number, R8 due time,
    R9 spins.
    """
    asm = Assembler()
    asm.alu(R.R6, "=", R.R1)
    asm.load_map_value(R.R2, count.fileno())
    asm.alu(R.R7, "=", 1)
    asm.fetch_add(R.R2, 0, R.R7)
    if interval_ns:
        asm.load_map_value(R.R2, due.fileno())
        asm.alu(R.R8, "=", interval_ns)
        asm.fetch_add(R.R2, 0, R.R8)
        asm.alu(R.R9, "=", 0)
        asm.label("wait")
        asm.call(Helper.KTIME_GET_NS)
        asm.jump_if(R.R0, ">=", R.R8, "due")
        asm.alu(R.R9, "+=", 1)
        asm.jump_if(R.R9, "<", _SPINS, "wait")  # bounded: the verifier wants to see the end
        asm.label("due")
    asm.load(R.R2, R.R6, 0, Size.U32)
    asm.load(R.R3, R.R6, 4, Size.U32)
    asm.alu(R.R4, "=", R.R2)
    asm.alu(R.R4, "+=", UDP_PAYLOAD_OFFSET + 4)
    asm.jump_if(R.R4, ">", R.R3, "send")
    if nr_flows > 1:
        asm.alu(R.R1, "=", R.R7)
        asm.alu(R.R1, "%=", nr_flows)
        asm.alu(R.R1, "+=", src_port)
        asm.big_endian(R.R1, 16)
        asm.store(R.R2, SRC_PORT_OFFSET, R.R1, Size.U16)
    if sequence:
        asm.alu(R.R1, "=", R.R7)
        asm.big_endian(R.R1, 32)
        asm.store(R.R2, UDP_PAYLOAD_OFFSET, R.R1, Size.U32)
    asm.label("send")
    asm.alu(R.R0, "=", _XDP_TX)
    asm.exit()
    return asm.code()

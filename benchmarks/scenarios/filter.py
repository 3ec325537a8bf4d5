# SPDX-License-Identifier: MIT
"""What a filter costs a frame: the steering program in the kernel, on one frame again and again (BPF_PROG_TEST_RUN).

The frame is UDP over IPv4 to port 53 in the CPU's cache, so this is instructions, not memory. Beside it stands the
program that passes every frame without a look.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.case import Case
from benchmarks.setting import Setting
from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap
from pagepool.drivers.af_xdp.bpf_program import XdpProgram
from pagepool.drivers.af_xdp.xdp_program import live_pass_code, steering_code
from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.xsk_map import xsk_map

__all__ = ["cases"]

_PASS_ALL = "XDP_PASS"
_FILTERS = {
    "filter all": "all",
    "filter udp port 53": "udp port 53",
    "filter net, tag, ports": "vlan 100 and net 10.0.0.0/8 and portrange 1-1024 or udp dst port 53",
    "filter, 64 ports, last": " or ".join(f"port {port}" for port in (*range(1000, 1063), 53)),
    "filter, 64 ports, none": "tcp or " + " or ".join(f"port {port}" for port in range(1000, 1063)),
}
_RUNS = 1 << 17


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows; none, and a note why, where programs cannot be loaded."""
    frame = udp_frame(src=b"\2\0\0\0\0\1", dst=b"\2\0\0\0\0\2", src_ip="10.0.0.1", dst_ip="10.0.0.2", dst_port=53)
    try:
        xsks, counters = stack.enter_context(xsk_map()), stack.enter_context(PerCpuArrayMap(3))
        codes = {_PASS_ALL: live_pass_code(counters)}
        codes |= {name: steering_code(xsks, counters, text) for name, text in _FILTERS.items()}
        programs = {name: stack.enter_context(XdpProgram(code)) for name, code in codes.items()}
    except DeviceError as error:
        setting.notes.append(f"no filter rows: {error}")
        return []
    return [
        Case(
            name,
            _run(program, frame),
            _FILTERS.get(name, "a program that returns at once, in the kernel's loop")[:60],
            per="frame",
            overhead=None,
            against=None if name == _PASS_ALL else _PASS_ALL,
        )
        for name, program in programs.items()
    ]


def _run(program: XdpProgram, frame: bytes) -> Callable[[int], int]:
    def measure(n: int) -> int:
        # One call costs milliseconds before its first frame, so the clock is the kernel's, and n only a scale.
        return n * program.mean_ns(frame, _RUNS)

    return measure

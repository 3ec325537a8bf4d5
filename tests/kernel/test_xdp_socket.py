# SPDX-License-Identifier: MIT
"""The AF_XDP socket and the attached program: frames arrive, and every refusal says why."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_rings import SMALL, Umem, bound_socket, fill, received, steer

from pagepool.drivers.af_xdp.bpf_program import XdpLink, XdpProgram
from pagepool.drivers.af_xdp.socket import BindFlag, RingSizes, XdpSocket
from pagepool.drivers.af_xdp.steering import SteeringCounters, WantedMode
from pagepool.errors import DeviceError
from pagepool.testing.frames import udp_frame
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

HERE = Path(__file__).parent  # plain_rings is imported from here

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]


@pytest.fixture
def umem() -> Iterator[Umem]:
    memory = Umem()
    yield memory
    memory.close()


def frame_to(veth: VethPair, **fields: Any) -> bytes:
    far, near = veth.far, veth.near
    return udp_frame(src=far.mac, dst=near.mac, src_ip=far.ipv4, dst_ip=near.ipv4, **fields)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_frames_arrive_byte_for_byte(veth: VethPair, umem: Umem, mode: WantedMode) -> None:
    veth.near.set_gro(mode == "generic")
    frame, steering = frame_to(veth, length=1514), steer(veth.near.ifindex, mode=mode)
    with bound_socket(umem, veth.near.ifindex) as xsk, LiveGenerator(veth.far, frame) as generator:
        assert xsk.rx is not None
        assert xsk.fill is not None
        fill(xsk.fill, [4096 * chunk for chunk in range(32)])
        steering.insert(0, xsk.fileno())
        generator.send(20)
        assert received(xsk.rx, umem, 20) == [frame] * 20
        assert not xsk.is_zerocopy()
        assert steering.mode == mode
        assert steering.counters().redirected == 20
        generator.send(20)  # 12 chunks are left
        assert len(received(xsk.rx, umem, 20, timeout=0.1)) == 12
        assert xsk.statistics().rx_fill_ring_empty_descs > 0
    steering.close()


def test_frames_that_do_not_match_reach_the_stack(veth: VethPair) -> None:
    import socket

    steering = steer(veth.near.ifindex, "not udp port 4001")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(2)
        receiver.bind((veth.near.ipv4, 4001))
        with LiveGenerator(veth.far, frame_to(veth)) as generator:
            generator.send(1)
        assert len(receiver.recv(64)) == 22
    assert steering.counters() == SteeringCounters(redirected=0, passed=1)
    steering.close()


def test_generic_is_the_fallback_of_auto(veth: VethPair) -> None:
    with veth.near.ns:
        lo = steer(1, ifname="lo")
    assert lo.mode == "generic"
    assert lo.fallback_reason is not None
    assert lo.fallback_reason.errno == errno.EOPNOTSUPP
    lo.close()


@pytest.mark.parametrize("veth", [{"mtu": 9000}], indirect=True)
def test_a_large_mtu_needs_a_program_with_fragments(veth: VethPair) -> None:
    code = bytes.fromhex("b7000000020000009500000000000000")  # return XDP_PASS
    with XdpProgram(code) as plain, pytest.raises(DeviceError, match="ERANGE; the MTU is too large"):
        XdpLink(plain, veth.near.ifindex)
    steer(veth.near.ifindex, mode="native").close()


def test_somebody_elses_program_is_never_replaced(veth: VethPair) -> None:
    first = steer(veth.near.ifindex)
    for mode, number in (("native", errno.EBUSY), ("auto", errno.EBUSY), ("generic", errno.EEXIST)):
        with pytest.raises(DeviceError, match="another XDP program is attached") as caught:
            steer(veth.near.ifindex, mode=mode)  # type: ignore[arg-type]
        assert caught.value.errno == number
    first.close()
    steer(veth.near.ifindex).close()


def test_a_killed_process_leaves_nothing_attached(veth: VethPair) -> None:
    script = (
        "import sys, time; from plain_rings import *\n"
        f"s = steer({veth.near.ifindex}); u = Umem(); x = bound_socket(u, {veth.near.ifindex})\n"
        "print('attached', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"attached\n"
        with pytest.raises(DeviceError, match="EBUSY"):
            steer(veth.near.ifindex)
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 2
    while True:  # the kernel ends the link with the last descriptor, a moment after the process
        try:
            steer(veth.near.ifindex).close()
            break
        except DeviceError:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    memory = Umem()
    bound_socket(memory, veth.near.ifindex).close()
    memory.close()


def test_rebinding_waits_for_the_asynchronous_close(veth: VethPair, umem: Umem) -> None:
    for _ in range(5):
        bound_socket(umem, veth.near.ifindex).close()


def test_refusals(veth: VethPair, umem: Umem) -> None:
    near = veth.near.ifindex
    with bound_socket(umem, near), pytest.raises(DeviceError, match="EBUSY; another socket owns the queue"):
        bound_socket(umem, near)
    for ifindex, queue, flags, text in (
        (near, 5, BindFlag.COPY, "EINVAL; no such queue"),
        (9999, 0, BindFlag.COPY, "ENODEV; no such interface"),
        (near, 0, BindFlag.ZEROCOPY, "NOTSUPP?; the driver has no zero copy"),
    ):
        with pytest.raises(DeviceError, match=text):
            bound_socket(umem, ifindex, queue, flags)
    with XdpSocket("test") as xsk:
        with pytest.raises(DeviceError, match="EINVAL; ring sizes are powers of two"):
            xsk.set_rings(RingSizes(rx=100))
        with pytest.raises(DeviceError, match="EINVAL; memory not page-aligned"):
            xsk.register_umem(umem.vaddr + 8, 4096)
        with pytest.raises(DeviceError, match="EFAULT"):
            xsk.register_umem(4096, 4096)
        with pytest.raises(DeviceError, match="EINVAL"):
            xsk.set_busy_poll(20, budget=1 << 20)
    with pytest.raises(DeviceError, match="EBADF; the queue is closed"):
        xsk.statistics()


def test_a_vanished_device_is_told_by_so_error(veth: VethPair, umem: Umem) -> None:
    with bound_socket(umem, veth.near.ifindex) as xsk:
        xsk.check_device()
        veth.delete()
        with pytest.raises(DeviceError, match="ENETDOWN"):
            xsk.check_device()


def test_options_are_accepted(veth: VethPair, umem: Umem) -> None:
    with bound_socket(umem, veth.near.ifindex) as xsk:
        xsk.set_busy_poll(20)
        assert xsk.set_tx_budget(64) in (True, False)
        assert xsk.statistics().rx_dropped == 0


@pytest.mark.parametrize("veth", [{"nr_queues": 2}], indirect=True)
def test_a_shared_umem_serves_another_queue(veth: VethPair, umem: Umem) -> None:
    first = bound_socket(umem, veth.near.ifindex, 0)
    with XdpSocket("queue 1") as second:
        second.set_rings(SMALL)
        second.bind(veth.near.ifindex, 1, BindFlag.USE_NEED_WAKEUP, share_umem_with=first)
        first.close()
        assert second.rx is not None
        assert second.fill is not None
        steering = steer(veth.near.ifindex)
        steering.insert(1, second.fileno())
        fill(second.fill, [4096 * chunk for chunk in range(8)])
        frame = frame_to(veth)
        cpu = max(os.sched_getaffinity(0))
        with LiveGenerator(veth.far, frame, cpu=cpu) as generator:  # the CPU decides the queue
            generator.send(4)
        if cpu % 2 == 1:
            assert received(second.rx, umem, 4) == [frame] * 4
        steering.close()


_WITHOUT = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
header = ctypes.create_string_buffer(struct.pack("=II", 0x20080522, 0))
caps = ctypes.create_string_buffer(24)
assert libc.syscall(125, header, caps) == 0
low = ~({mask}) & 0xffffffff; high = ~({mask} >> 32) & 0xffffffff
e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", caps.raw)
caps = ctypes.create_string_buffer(struct.pack("=6I", e0 & low, p0 & low, 0, e1 & high, p1 & high, 0))
assert libc.syscall(126, header, caps) == 0
from pagepool.drivers.af_xdp import bpf
from plain_rings import *
try:
    {action}
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the system call numbers here are those of x86-64")
@pytest.mark.parametrize(
    ("caps", "action", "text"),
    [
        ([13], "XdpSocket('eth0 queue 0')", "socket AF_XDP eth0 queue 0: EPERM; needs CAP_NET_RAW"),
        ([21, 39], "bpf.XskMap(4)", "bpf map create pp_xsks: EPERM; needs CAP_BPF"),
    ],
)
def test_a_missing_capability_is_named(caps: list[int], action: str, text: str) -> None:
    script = _WITHOUT.format(mask=sum(1 << cap for cap in caps), action=action)
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.startswith(text)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the system call numbers here are those of x86-64")
def test_memlock_is_named(veth: VethPair) -> None:
    size = max(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] // 4096 + 64, 128)
    if size > 1 << 16:
        size = 64  # no limit worth naming: the registration will succeed
    action = f"u = Umem({size}); x = XdpSocket('s'); x.register_umem(u.vaddr, u.size_bytes); print('fits')"
    script = _WITHOUT.format(mask=1 << 14, action=action)  # CAP_IPC_LOCK
    out = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, check=True)
    assert "over RLIMIT_MEMLOCK; needs CAP_IPC_LOCK" in out.stdout or out.stdout == "fits\n"


def test_a_refused_program_shows_the_verifiers_words() -> None:
    with pytest.raises(DeviceError, match=r"verifier: .*exit"):
        XdpProgram(b"\xb7" + bytes(7))

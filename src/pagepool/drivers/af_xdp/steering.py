# SPDX-License-Identifier: MIT
"""The attached steering program of one interface, shared by all queues of this process on it.

An interface has room for one XDP program, but a process may open several of its queues: they share the program and its
map, and the last to close detaches it. Each queue may have a filter of its own; the program is made anew when one comes
that it does not know, and replaces the old one while frames go on. Or all have a program of the user's. All queues
have one mode. Detaching needs no clean-up code to run: the link goes with the process.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from fcntl import ioctl
from typing import Literal

from pagepool.drivers.af_xdp.bpf import PerCpuArrayMap, XskMap
from pagepool.drivers.af_xdp.bpf_object import XdpObject
from pagepool.drivers.af_xdp.bpf_program import XdpLink, XdpMode, XdpProgram
from pagepool.drivers.af_xdp.filter import parse_filter
from pagepool.drivers.af_xdp.filter.tree import Everything
from pagepool.drivers.af_xdp.xdp_program import (
    COUNTER_PASSED,
    COUNTER_REDIRECTED,
    live_pass_code,
    steering_code,
    wrapper_code,
)
from pagepool.errors import DeviceError

__all__ = ["Steering", "SteeringCounters", "WantedMode", "close_steering", "open_steering"]

WantedMode = Literal["auto", "native", "generic"]

_NR_QUEUES = 1024  # entries of the map, 8 bytes each; more than any device has
_NR_COUNTERS = 3
_FRAGS_MTU = 3000  # beyond it, native XDP wants a program that understands fragments (veth: from 3507 on)
_SIOCGIFMTU = 0x8921
_SOMEBODY_ELSE = (errno.EBUSY, errno.EEXIST, errno.ENODEV, errno.EPERM)


@dataclass(frozen=True)
class SteeringCounters:
    """Frames of the interface: ``redirected`` to a socket of ours, ``passed`` to the kernel's stack."""

    redirected: int
    passed: int


class Steering:
    """Map, program and link of one interface. Made by `open_steering`.

    Attributes
    ----------
    mode : {"native", "generic"}
        Where the program really is.
    fallback_reason : DeviceError or None
        Why ``auto`` did not become native.
    program : XdpObject or None
        The user's program; None for filters.
    """

    def __init__(
        self,
        ifname: str,
        ifindex: int,
        filter: str,
        mode: WantedMode,
        program: XdpObject | None,
        *,
        owns: bool,
        timestamps: bool = False,
    ) -> None:
        self.ifname, self.ifindex = ifname, ifindex
        self.program = program
        self._owned = program if owns else None
        self.fallback_reason: DeviceError | None = None
        self._members: list[tuple[int, str]] = []  # (queue, filter) of each user
        self._default, self._others = filter, dict[int, str]()  # what the attached program knows
        self._timestamps = timestamps  # and whether it writes them
        self._own_xsks = XskMap(_NR_QUEUES) if program is None else None
        self._xsks = self._own_xsks or program.xsks  # type: ignore[union-attr]
        self._counters = PerCpuArrayMap(_NR_COUNTERS)
        self._frags = _mtu(ifname) > _FRAGS_MTU
        try:
            self._program, self._link = self._attach(mode)
        except BaseException:
            for part in (self._own_xsks, self._counters):
                if part is not None:
                    part.close()
            raise
        self.mode: XdpMode = self._link.mode
        self._pass_program: XdpProgram | None = None

    def join(self, queue: int, filter: str, timestamps: bool = False) -> None:
        """Take part with a queue; the program knows its filter afterwards, and writes timestamps if one wants them.

        Raises
        ------
        DeviceError
            EBUSY: the queue is open with another filter.
        FilterError
            With those of the other queues it becomes too big.
        """
        for number, its in self._members:
            if number == queue and its != filter:
                hint = f"this process has it open with filter {its!r}, and it can be open once"
                raise DeviceError(errno.EBUSY, "open AF_XDP", f"{self.ifname} queue {queue}", hint)
        wanted = {**dict(self._members), queue: filter}
        known = all(self._others.get(number, self._default) == text for number, text in wanted.items())
        if self.program is None and not (known and timestamps <= self._timestamps):
            self._refilter(wanted, timestamps or self._timestamps)
        self._members.append((queue, filter))

    def leave(self, queue: int, filter: str) -> bool:
        """Undo a `join`; return whether nobody is left."""
        self._members.remove((queue, filter))
        return not self._members

    def insert(self, queue: int, socket_fd: int) -> None:
        """Send the frames of `queue` that match to the socket from now on."""
        self._xsks.insert(queue, socket_fd)

    def remove(self, queue: int) -> None:
        """Let the frames of `queue` go to the stack again."""
        self._xsks.remove(queue)

    def pass_frame(self, frame: memoryview, queue: int) -> None:
        """Hand one frame to the stack, as received on `queue`; it is copied.

        Raises
        ------
        DeviceError
            EINVAL: shorter than 14 bytes, or longer than about 3400.

        Notes
        -----
        Context: any thread that is in the interface's network namespace. One system call, some 50 us: what
        one wants to pass in number should not match the filter in the first place.
        """
        if self._pass_program is None:
            code = live_pass_code(self._counters, generic=self.mode == "generic")
            self._pass_program = XdpProgram(code, "pp_pass")
        self._pass_program.run_live(frame, 1, ifindex=self.ifindex, queue=queue)

    def counters(self) -> SteeringCounters:
        """Return what the program has counted so far, all queues together."""
        sums = self._counters.sums()
        return SteeringCounters(sums[COUNTER_REDIRECTED], sums[COUNTER_PASSED])

    def close(self) -> None:
        """Detach the program and give everything back. Idempotent."""
        for part in (self._link, self._program, self._pass_program, self._own_xsks, self._counters, self._owned):
            if part is not None:
                part.close()

    def _attach(self, mode: WantedMode) -> tuple[XdpProgram, XdpLink]:
        if mode != "auto":
            return self._attach_as(mode)
        try:
            return self._attach_as("native")
        except DeviceError as error:
            if error.errno in _SOMEBODY_ELSE:
                raise
            self.fallback_reason = error
            return self._attach_as("generic")

    def _refilter(self, wanted: dict[int, str], timestamps: bool) -> None:
        default = Counter(wanted.values()).most_common(1)[0][0]
        others = {queue: text for queue, text in wanted.items() if text != default}
        program = self._load(self.mode, default, others, timestamps)
        try:
            self._link.replace(program)
        except BaseException:
            program.close()
            raise
        self._program.close()
        self._program, self._default, self._others, self._timestamps = program, default, others, timestamps

    def _load(self, mode: XdpMode, default: str, others: dict[int, str], timestamps: bool) -> XdpProgram:
        if self.program is not None:
            return self.program.load(wrapper_code(self._counters, generic=mode == "generic"))
        generic = mode == "generic"
        code = steering_code(self._xsks, self._counters, default, others, generic=generic, timestamps=timestamps)
        return XdpProgram(code, "pp_steering", frags=self._frags)

    def _attach_as(self, mode: XdpMode) -> tuple[XdpProgram, XdpLink]:
        program = self._load(mode, self._default, {}, self._timestamps)
        try:
            return program, XdpLink(program, self.ifindex, mode, obj=self.ifname)
        except BaseException:
            program.close()
            raise


_lock = threading.Lock()
_open: dict[tuple[int, int, int], Steering] = {}  # (namespace device, inode, ifindex)


def open_steering(
    ifname: str,
    ifindex: int,
    queue: int,
    filter: str = "all",
    mode: WantedMode = "auto",
    program: XdpObject | str | os.PathLike[str] | None = None,
    timestamps: bool = False,
) -> Steering:
    """Attach the steering program, or take part in the one that this process has attached already.

    Raises
    ------
    FilterError
        The filter does not parse.
    ObjectFileError
        The user's program cannot be used.
    ValueError
        Another queue of the interface is open in another mode or with another program; filter and program both, or
        timestamps and program.
    DeviceError
        Somebody else's program is attached (EBUSY, EEXIST), no permission, and so on.

    Notes
    -----
    Context: any thread, in the interface's network namespace. Pair with `close_steering`.
    """
    everything = parse_filter(filter) == Everything()
    if program is not None and not everything:
        raise ValueError("program= decides by itself what to take: leave filter= away")
    if program is not None and timestamps:
        raise ValueError("program= writes what it likes before a frame: leave timestamps= away")
    ns = os.stat("/proc/thread-self/ns/net")
    key = (ns.st_dev, ns.st_ino, ifindex)
    with _lock:
        steering = _open.get(key)
        if steering is None:
            steering = _attach_new(ifname, ifindex, filter, mode, program, timestamps)
        elif mode not in ("auto", steering.mode):
            raise ValueError(f"{ifname} has a queue open in {steering.mode} mode; {mode} is not possible beside it")
        elif not _is_same(steering.program, program):
            raise ValueError(f"{ifname} has a queue open with {steering.program or 'filters'}; all its queues share it")
        steering.join(queue, filter, timestamps)
        _open[key] = steering
        return steering


def _attach_new(
    ifname: str,
    ifindex: int,
    filter: str,
    mode: WantedMode,
    program: XdpObject | str | os.PathLike[str] | None,
    timestamps: bool,
) -> Steering:
    if program is None or isinstance(program, XdpObject):
        if any(program is not None and known.program is program for known in _open.values()):
            raise ValueError(f"{program!r} is on another interface: its map has one place for each queue number")
        return Steering(ifname, ifindex, filter, mode, program, owns=False, timestamps=timestamps)
    made = XdpObject(program)
    try:
        return Steering(ifname, ifindex, filter, mode, made, owns=True)
    except BaseException:
        made.close()
        raise


def _is_same(known: XdpObject | None, wanted: XdpObject | str | os.PathLike[str] | None) -> bool:
    if known is None or wanted is None or isinstance(wanted, XdpObject):
        return known is wanted
    return os.path.realpath(known.path) == os.path.realpath(wanted)


def close_steering(steering: Steering, queue: int, filter: str) -> None:
    """Give a part in the steering program back; the last one detaches it."""
    with _lock:
        if not steering.leave(queue, filter):
            return
        for key in [key for key, known in _open.items() if known is steering]:
            del _open[key]
    steering.close()


def _abandon_after_fork() -> None:
    """In a forked child: drop the inherited descriptors, or the child would keep the program attached."""
    global _lock
    _lock = threading.Lock()
    for steering in _open.values():
        steering.close()
    _open.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)


def _mtu(ifname: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        raw = ioctl(control, _SIOCGIFMTU, struct.pack("=16s24x", ifname.encode()))
    return int(struct.unpack_from("=i", raw, 16)[0])

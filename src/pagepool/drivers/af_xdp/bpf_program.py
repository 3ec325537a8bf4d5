# SPDX-License-Identifier: MIT
"""XDP programs: load one, attach it by a link, run it on live frames.

The link is the safety: the program is attached exactly as long as the link's descriptor is open, so a process
that dies in whatever way leaves nothing behind, and somebody else's program is never replaced.

Sources: bpf(2), ``linux/bpf.h``, Documentation/bpf/bpf_prog_run.rst (live frames),
Documentation/networking/xdp*.rst.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Final, Literal

from pagepool.drivers.af_xdp.bpf import BpfObject, bpf
from pagepool.errors import DeviceError

__all__ = ["XdpLink", "XdpMode", "XdpProgram"]

XdpMode = Literal["native", "generic"]

_PROG_LOAD, _PROG_TEST_RUN, _LINK_CREATE, _LINK_UPDATE = 5, 10, 28, 29
_PROG_TYPE_XDP, _ATTACH_XDP = 6, 37
_F_XDP_HAS_FRAGS = 1 << 5
_F_TEST_XDP_LIVE_FRAMES = 1 << 1
_LINK_FLAG: Final[dict[XdpMode, int]] = {"generic": 1 << 1, "native": 1 << 2}
_LOG_BYTES = 1 << 18

_ATTACH_HINTS: Final = {
    errno.EBUSY: "another XDP program is attached; it is never replaced, detach it first",
    errno.EEXIST: "another XDP program is attached in another mode; it is never replaced, detach it first",
    errno.EOPNOTSUPP: "the driver has no native XDP; mode='generic' works on every device",
    errno.ERANGE: "the MTU is too large for a program without fragments",
    errno.EINVAL: "the driver refused the program in its present set-up",
    errno.ENODEV: "no such interface in this network namespace",
    errno.EPERM: "needs CAP_NET_ADMIN",
}


class XdpProgram(BpfObject):
    """A loaded XDP program.

    Parameters
    ----------
    code : bytes
        Instructions, 8 bytes each.
    name : str
        At most 15 letters, digits, ``_`` and ``.``; shown by ``bpftool prog``.
    frags : bool
        The program understands frames in several buffers (needed for an MTU above about 3500 bytes).
    licence : bytes
        What the kernel asks before it lends some helpers.

    Raises
    ------
    DeviceError
        With the end of the verifier's log as its hint when the verifier refused the program.
    """

    def __init__(
        self, code: bytes, name: str = "pagepool", *, frags: bool = False, licence: bytes = b"Dual MIT/GPL"
    ) -> None:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence_text = ctypes.create_string_buffer(licence)
        log = ctypes.create_string_buffer(_LOG_BYTES)

        def load(log_level: int) -> int:
            log_part = (log_level, _LOG_BYTES, ctypes.addressof(log)) if log_level else (0, 0, 0)
            attr = struct.pack(
                "=IIQQIIQII16sII",
                _PROG_TYPE_XDP,
                len(code) // 8,
                ctypes.addressof(instructions),
                ctypes.addressof(licence_text),
                *log_part,
                0,
                _F_XDP_HAS_FRAGS if frags else 0,
                name.encode()[:15],
                0,
                _ATTACH_XDP,
            )
            return bpf(_PROG_LOAD, attr, "bpf program load", name)[0]

        try:
            fd = load(0)
        except DeviceError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES, errno.E2BIG):
                raise
            try:  # once more, for the verifier's words
                fd = load(1)
            except DeviceError as again:
                last = log.value.decode(errors="replace").strip().splitlines()[-12:]
                raise DeviceError(again.errno or 0, again.call, name, "verifier: " + " | ".join(last)) from None
        super().__init__(fd)
        self.name = name
        self.frags = frags

    def verdict(self, frame: bytes) -> int:
        """Run the program once on ``frame`` as if on queue 0, carry nothing out, and return its XDP
        action.
        """
        return self._test_run(frame, 1)[0]

    def mean_ns(self, frame: bytes, repeat: int) -> int:
        """Run it ``repeat`` times like that; return the kernel's mean of the time of one, its loop included."""
        return self._test_run(frame, repeat)[1]

    def _test_run(self, frame: bytes, repeat: int) -> tuple[int, int]:
        payload = (ctypes.c_char * len(frame)).from_buffer_copy(frame)
        attr = struct.pack("=IIIIQQI", self._fd, 0, len(frame), 0, ctypes.addressof(payload), 0, repeat)
        _, block = bpf(_PROG_TEST_RUN, attr, "bpf program test run", self.name)
        action, _, _, _, _, _, duration = struct.unpack_from("=IIIQQII", block, 4)
        return action, duration

    def run_live(
        self,
        frame: bytes | bytearray | memoryview,
        repeat: int = 1,
        *,
        ifindex: int,
        queue: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Run the program ``repeat`` times on copies of ``frame`` and carry its verdicts out as a driver
        would.

        ``XDP_PASS`` hands the frame to the stack as received on ``ifindex``, ``XDP_TX`` sends it out of that
        device.

        Parameters
        ----------
        frame : bytes-like
            14 to about 3400 bytes (one kernel page less its headroom).
        repeat : int
            How many frames; a large number costs one system call.
        ifindex, queue : int
            The receive queue the frames seem to come from, in the calling thread's network namespace.
        batch_size : int
            Frames per NAPI-like batch, 1 to 256.

        Context: blocks without the GIL until all frames are done; a signal ends it early (EINTR).
        """
        length = len(frame)
        payload = (ctypes.c_char * length).from_buffer_copy(frame)
        context = struct.pack("=IIIIII", 0, length, 0, ifindex, queue, 0)
        raw_context = ctypes.create_string_buffer(context, len(context))
        attr = struct.pack(
            "=IIIIQQIIIIQQIII",
            self._fd,
            0,
            length,
            0,
            ctypes.addressof(payload),
            0,
            repeat,
            0,
            len(context),
            0,
            ctypes.addressof(raw_context),
            0,
            _F_TEST_XDP_LIVE_FRAMES,
            0,
            batch_size,
        )
        hints = {
            errno.ENODEV: "no such interface in this network namespace",
            errno.EINVAL: "frame too short or long, or no such queue",
            errno.EINTR: "interrupted by a signal",
        }
        bpf(_PROG_TEST_RUN, attr, "bpf program run live frames", f"ifindex {ifindex} queue {queue}", hints)


class XdpLink(BpfObject):
    """A program attached to an interface for as long as this object (and the process) lives.

    Parameters
    ----------
    program : XdpProgram
        What to attach.
    ifindex : int
        The interface, in the calling thread's network namespace.
    mode : {"native", "generic"}
        The driver's own hook, or the stack's (slower: after the skb is made; works everywhere).
    obj : str
        How error messages call the interface.
    """

    def __init__(self, program: XdpProgram, ifindex: int, mode: XdpMode = "native", *, obj: str = "") -> None:
        attr = struct.pack("=IIII", program.fileno(), ifindex, _ATTACH_XDP, _LINK_FLAG[mode])
        obj = obj or f"ifindex {ifindex}"
        super().__init__(bpf(_LINK_CREATE, attr, f"attach XDP program ({mode})", obj, _ATTACH_HINTS)[0])
        self.ifindex = ifindex
        self.mode: XdpMode = mode
        self.obj = obj

    def replace(self, program: XdpProgram) -> None:
        """Attach another program in place of the present one; no frame goes by without either."""
        attr = struct.pack("=IIII", self._fd, program.fileno(), 0, 0)
        bpf(_LINK_UPDATE, attr, f"replace XDP program ({self.mode})", self.obj, _ATTACH_HINTS)

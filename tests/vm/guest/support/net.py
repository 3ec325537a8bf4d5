# SPDX-License-Identifier: MIT
"""Interfaces of the guest's kernel: find one by its Ethernet address, bring it up or down."""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from pathlib import Path

INTERFACES = Path("/sys/class/net")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
IFREQ_FLAGS = struct.Struct("16sH14x")
LINK_SECONDS = 60


def interface_of(mac: str) -> str:
    """Return the name of the interface with this Ethernet address; its kernel driver must have the device."""
    return next(f.parent.name for f in INTERFACES.glob("*/address") if f.read_text().strip() == mac)


def bring_up(interface: str) -> None:
    """Bring the interface up and wait until the kernel really sends on it.

    A driver reports its carrier some time after the interface is up, and until the kernel has seen to that it
    drops what is sent without a word.

    Raises
    ------
    TimeoutError
        There is no carrier.
    """
    _set_up(interface, up=True)
    deadline = time.monotonic() + LINK_SECONDS
    while (INTERFACES / interface / "operstate").read_text().strip() != "up":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{interface} has no carrier after {LINK_SECONDS} s")
        time.sleep(0.01)
    _set_up(interface, up=True)  # waits for the kernel's network lock, under which the queue is opened


def bring_down(interface: str) -> None:
    """Bring the interface down."""
    _set_up(interface, up=False)


def _set_up(interface: str, *, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(IFREQ_FLAGS.pack(interface.encode(), 0))
        fcntl.ioctl(control, SIOCGIFFLAGS, request)
        flags = IFREQ_FLAGS.unpack(request)[1] & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ_FLAGS.pack(interface.encode(), flags | (IFF_UP if up else 0)))

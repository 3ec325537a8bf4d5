# SPDX-License-Identifier: MIT
"""libpcap's own compiler and interpreter of filters, as a reference; nothing here captures anything.

Source: pcap_compile(3PCAP), pcap_offline_filter(3PCAP).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Self

__all__ = ["PcapFilter"]

_ETHERNET, _SNAPLEN = 1, 65535
_NO_NETMASK = 0xFFFF_FFFF


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


class PcapFilter:
    """A filter for Ethernet as libpcap compiles it, without optimizing.

    Raises
    ------
    ValueError
        In libpcap's words.
    """

    def __init__(self, expression: str) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("pcap"))
        self._library.pcap_open_dead.restype = ctypes.c_void_p
        self._library.pcap_geterr.restype = ctypes.c_char_p
        self._program = _Program()
        dead = ctypes.c_void_p(self._library.pcap_open_dead(_ETHERNET, _SNAPLEN))
        try:
            arguments = (ctypes.byref(self._program), expression.encode(), 0, ctypes.c_uint32(_NO_NETMASK))
            if self._library.pcap_compile(dead, *arguments):
                raise ValueError(f"libpcap: {expression!r}: {self._library.pcap_geterr(dead).decode()}")
        finally:
            self._library.pcap_close(dead)

    def matches(self, frame: bytes) -> bool:
        """Return whether libpcap takes the frame."""
        header = _Header(0, 0, len(frame), len(frame))
        found: int = self._library.pcap_offline_filter(ctypes.byref(self._program), ctypes.byref(header), frame)
        return found != 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._library.pcap_freecode(ctypes.byref(self._program))

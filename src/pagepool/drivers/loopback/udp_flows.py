# SPDX-License-Identifier: MIT
"""Generated traffic: IPv4 flows, mostly UDP, from a seed, at memory speed.

A bank of finished frames with right checksums, handed out in turn, each with a running number in its payload.
Invariant: the n-th frame is the same for the same arguments on every machine, and its number is n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagepool.drivers.loopback.sources import FrameBlock
from pagepool.xdp.driver import U8Array, U32Array

__all__ = ["NUMBER_AT", "UdpFlows"]

_BANK = 1024  # frames; 60 KiB of 60-byte frames stay in the second-level cache
#  Bytes from a frame's first to its running number, big-endian, 32 bits, from 0: where a UDP payload begins,
# and where the
#: acknowledgement number of a TCP segment is.
NUMBER_AT = 42
# The number's complement stands beside it, so that the sum over both never changes and the checksums stay
# right.
_UDP_COMPLEMENT_AT, _TCP_COMPLEMENT_AT = 46, 38
_MIN_FRAME, _MAX_FRAME = 60, 9018
_UDP, _TCP = 17, 6


class UdpFlows:
    """A source of IPv4 frames of many flows.

    Parameters
    ----------
    flows : int
        Flows, each with its own addresses and ports; 1 to 65536.
    frame_bytes : int
        Bytes per frame without its check sequence, 60 to 9018.
    count : int, optional
        End after so many frames; endless by default.
    seed : int
        Of which flow each frame is, and which frames are TCP.
    udp_share : float
        Part of the frames that are UDP, 0 to 1; the others are TCP.

    Notes
    -----
    Taking 64 frames costs about two microseconds.

    Context: one thread at a time.
    """

    def __init__(
        self,
        flows: int = 16,
        frame_bytes: int = _MIN_FRAME,
        count: int | None = None,
        *,
        seed: int = 0,
        udp_share: float = 1.0,
    ) -> None:
        if not 1 <= flows <= 65536:
            raise ValueError(f"flows {flows} is out of range: 1 to 65536")
        if not _MIN_FRAME <= frame_bytes <= _MAX_FRAME:
            raise ValueError(f"frame_bytes {frame_bytes} is out of range: {_MIN_FRAME} to {_MAX_FRAME}")
        if not 0.0 <= udp_share <= 1.0:
            raise ValueError(f"udp_share {udp_share} is out of range: 0 to 1")
        if count is not None and count < 0:
            raise ValueError(f"count {count} is negative")
        random = np.random.default_rng(seed)
        # The first frames show every flow once, if there is room: a demo of 16 flows has them all at once.
        flow = random.integers(0, flows, _BANK)
        shown = min(flows, _BANK)
        flow[:shown] = random.permutation(shown)
        is_udp = random.random(_BANK) < udp_share
        self._rows = _make_bank(flow, is_udp, frame_bytes)
        self._numbers = self._rows[:, NUMBER_AT : NUMBER_AT + 4]
        at = np.where(is_udp, _UDP_COMPLEMENT_AT, _TCP_COMPLEMENT_AT) + np.arange(_BANK) * frame_bytes
        self._complement_at = at[:, None] + np.arange(4)
        self._flat = self._rows.reshape(-1)
        self._lengths: U32Array = np.full(_BANK, frame_bytes, np.uint32)
        self._at = 0
        self._left = count

    def take(self, n: int) -> FrameBlock | None:
        """Return the next frames; fewer than `n` at the end of the bank."""
        at = self._at % _BANK
        n = min(n, _BANK - at)
        if self._left is not None:
            n = min(n, self._left)
            self._left -= n
            if n == 0:
                return None
        numbers = np.arange(self._at, self._at + n).astype(">u4").view(np.uint8).reshape(n, 4)
        self._numbers[at : at + n] = numbers
        self._flat[self._complement_at[at : at + n]] = ~numbers
        self._at += n
        return FrameBlock(self._rows[at : at + n], self._lengths[:n])


def _make_bank(flow: npt.NDArray[np.int64], is_udp: npt.NDArray[np.bool_], frame_bytes: int) -> U8Array:
    rows = np.zeros((_BANK, frame_bytes), np.uint8)
    rows[:, 0:6] = np.frombuffer(b"\x02\0\0\0\0\x02", np.uint8)  # locally administered
    rows[:, 6:12] = np.frombuffer(b"\x02\0\0\0\0\x01", np.uint8)
    rows[:, 12:14] = (0x08, 0x00)
    rows[:, 14] = 0x45
    _put16(rows, 16, np.full(_BANK, frame_bytes - 14))
    _put16(rows, 18, np.arange(_BANK))
    rows[:, 22] = 64
    rows[:, 23] = np.where(is_udp, _UDP, _TCP)
    rows[:, 26:28] = (10, 0)
    _put16(rows, 28, flow)
    rows[:, 30:34] = (10, 255, 0, 1)
    _put16(rows, 24, ~_sum16(rows[:, 14:34]) & 0xFFFF)
    _put16(rows, 34, 1024 + flow % 60000)
    _put16(rows, 36, np.where(is_udp, 9, 80))  # discard; http
    udp, tcp = is_udp.nonzero()[0], (~is_udp).nonzero()[0]
    rows[:, 38:46] = 0
    _put16(rows, 38, np.where(is_udp, frame_bytes - 34, 0xFFFF))
    rows[udp, 46:50] = 0xFF
    rows[tcp, 40:42] = 0xFF
    rows[tcp, 46:50] = (0x50, 0x02, 0xFF, 0xFF)  # 20 bytes of header; SYN; the whole window
    pseudo = _sum16(rows[:, 26:34]) + rows[:, 23] + (frame_bytes - 34)
    total = pseudo + _sum16(rows[:, 34:])
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    checksum[checksum == 0] = 0xFFFF  # 0 would say "not computed" in UDP, and both are zero in ones' complement
    _put16(rows, 40, np.where(is_udp, checksum, 0xFFFF))
    _put16(rows, 50, np.where(is_udp, 0, checksum))
    return rows


def _put16(rows: U8Array, at: int, values: npt.NDArray[np.int64]) -> None:
    rows[:, at] = values >> 8 & 0xFF
    rows[:, at + 1] = values & 0xFF


def _sum16(data: U8Array) -> npt.NDArray[np.int64]:
    """Return the ones' complement sum of the 16-bit words of each row, an odd last byte padded."""
    words = data.astype(np.int64)
    total = (words[:, 0::2] << 8).sum(axis=1) + words[:, 1::2].sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    return np.asarray((total & 0xFFFF) + (total >> 16), np.int64)

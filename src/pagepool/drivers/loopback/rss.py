# SPDX-License-Identifier: MIT
"""Receive side scaling: the Toeplitz hash over addresses and ports of many frames at once, as NICs compute it.

Only the hash; which queue it means is the NIC's table. Invariant: frames of one flow have one hash. Verified against
the published test vectors of the RSS specification.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagepool.xdp.driver import U8Array, U32Array

__all__ = ["DEFAULT_KEY", "rss_hash"]

#: The key of the specification's test vectors, and the default of many drivers.
DEFAULT_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")

_ETH, _IPV4, _IPV6 = 14, 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_V4_TUPLE, _V6_TUPLE = 12, 36  # source, destination, source port, destination port


def _table(key: bytes) -> npt.NDArray[np.uint32]:
    """Return (36, 256) uint32: what each value of each input byte adds to the hash."""
    bits = int.from_bytes(key, "big")
    windows = [bits >> (len(key) * 8 - 32 - k) & 0xFFFFFFFF for k in range(_V6_TUPLE * 8)]
    table = np.zeros((_V6_TUPLE, 256), np.uint32)
    values = np.arange(256)
    for byte in range(_V6_TUPLE):
        for bit in range(8):
            table[byte] ^= np.where(values >> (7 - bit) & 1, np.uint32(windows[byte * 8 + bit]), np.uint32(0))
    return table


_default_table = _table(DEFAULT_KEY)


def rss_hash(rows: U8Array, lengths: U32Array) -> U32Array:
    """Hash frames.

    Parameters
    ----------
    rows : (n, width) uint8
        Ethernet frames, each from its first byte.
    lengths : (n,) uint32
        Bytes of each.

    Returns
    -------
    (n,) uint32
        Over both addresses and both ports of TCP and UDP, over the addresses alone of other IP packets and of fragments
        (whose ports are elsewhere), 0 for what is not IP.
    """
    n, width = rows.shape
    hashes = np.zeros(n, np.uint32)
    if width < _ETH + 20:
        return hashes
    ethertype = rows[:, 12].astype(np.uint16) << 8 | rows[:, 13]
    is_v4 = (ethertype == _IPV4) & (lengths >= _ETH + 20)
    if is_v4.any():
        fragment = (rows[:, 20] & 0x3F).astype(bool) | rows[:, 21].astype(bool)
        plain = (rows[:, 14] == 0x45) & ~fragment & (lengths >= _ETH + 24) & _has_ports(rows[:, 23])
        _hash(hashes, rows, is_v4, plain, _ETH + 12, 8, _V4_TUPLE)
    is_v6 = (ethertype == _IPV6) & (lengths >= _ETH + 40)
    if is_v6.any() and width >= _ETH + 40:
        plain = (lengths >= _ETH + 44) & _has_ports(rows[:, 20])
        _hash(hashes, rows, is_v6, plain, _ETH + 8, 32, _V6_TUPLE)
    return hashes


def _has_ports(protocol: U8Array) -> npt.NDArray[np.bool_]:
    return np.isin(protocol, (_TCP, _UDP))


def _hash(
    hashes: U32Array,
    rows: U8Array,
    chosen: npt.NDArray[np.bool_],
    with_ports: npt.NDArray[np.bool_],
    first: int,
    short: int,
    long: int,
) -> None:
    """Fill in the hashes of one IP version: `short` bytes from `first` on for all, `long` where ports follow."""
    for size_bytes, mask in ((short, chosen & ~with_ports), (long, chosen & with_ports)):
        at = mask.nonzero()[0]
        if len(at):
            parts = _default_table[np.arange(size_bytes), rows[at, first : first + size_bytes]]
            hashes[at] = np.bitwise_xor.reduce(parts, axis=1)

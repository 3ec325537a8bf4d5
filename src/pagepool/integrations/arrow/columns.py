# SPDX-License-Identifier: MIT
"""What is known of each frame, as columns: their names, Arrow types, and how they are filled.

Only arrays: nothing here knows who owns the frames or the memory. Invariant: the columns of a name have one type,
whatever the frames are, so that batches of one stream agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pagepool.integrations.arrow import _headers
from pagepool.integrations.arrow.frame_views import make_views
from pagepool.xdp.driver import U8Array, U32Array

__all__ = ["ALL_COLUMNS", "COLUMNS", "FIVE_TUPLE", "METADATA", "PAYLOAD", "Column", "Frames", "check_columns", "fill"]

_Any = npt.NDArray[Any]

#: ``pp_header_t`` of `_headers`.
_HEADER = np.dtype(
    [
        ("ethertype", "u2"),
        ("vlan", "u2"),
        ("src_port", "u2"),
        ("dst_port", "u2"),
        ("proto", "u1"),
        ("has", "u1"),
        ("src_ip", "u1", 16),
        ("dst_ip", "u1", 16),
    ]
)
_TEXT_BYTES = 46  # of an address, at most


class Column(NamedTuple):
    """A column, filled.

    Attributes
    ----------
    values : (n, ...) ndarray
        Fixed-size values, or ``(n, 16) uint8`` views.
    valid : (n,) bool or None
        None: all are.
    data : (m,) uint8 or None
        The data buffer of text views.
    vaddrs, sizes : (n,) uint64, (n,) int64, or None
        Data buffers that are frames, by vaddr; they are in no array.
    """

    values: _Any
    valid: npt.NDArray[np.bool_] | None = None
    data: U8Array | None = None
    vaddrs: npt.NDArray[np.uint64] | None = None
    sizes: npt.NDArray[np.int64] | None = None


@dataclass
class Frames:
    """Frames as the columns see them.

    Attributes
    ----------
    flat : (size_bytes,) uint8
        Memory that they all lie in: an arena, or what is between the first page and the last.
    base_vaddr : int
        vaddr of its first byte.
    starts : (n,) int64
        First byte of each frame in it.
    ids, lengths : (n,) uint32
        Page of each frame; its bytes.
    interface : str or None
    queue : int, (n,) uint16, or None
        Where they came in, where that is known.
    timestamp_ns : int or (n,) int64
        When they were taken from the queue, nanoseconds since 1970.
    """

    flat: U8Array
    base_vaddr: int
    starts: npt.NDArray[np.int64]
    ids: U32Array
    lengths: U32Array
    interface: str | None
    queue: int | npt.NDArray[np.uint16] | None
    timestamp_ns: int | npt.NDArray[np.int64]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(n,) int64 : bytes of each."""
        return self.lengths.astype(np.int64)

    @cached_property
    def headers(self) -> _Any:
        """(n,) structured : VLAN, addresses, protocol and ports; read once, for all columns that want them."""
        headers = np.empty(len(self.ids), _HEADER)
        _headers.read_headers(self.flat, self.starts, self.sizes, headers.view(np.uint8))
        return headers


def _payload(frames: Frames) -> Column:
    # A data buffer for each frame: a consumer may touch, copy or send the whole of a buffer that any view refers to, so
    # it must meet the bytes that it was given and no page of anybody else's.
    views = make_views(frames.flat, frames.starts, frames.sizes, np.arange(len(frames.ids)), 0)
    return Column(views, vaddrs=(frames.starts + frames.base_vaddr).astype(np.uint64), sizes=frames.sizes)


def _timestamp(frames: Frames) -> Column:
    return Column(np.broadcast_to(np.asarray(frames.timestamp_ns) // 1000, len(frames.ids)))


def _queue(frames: Frames) -> Column:
    n, queue = len(frames.ids), frames.queue
    if queue is None:
        return Column(np.zeros(n, np.uint16), np.zeros(n, np.bool_))
    return Column(np.broadcast_to(np.asarray(queue, np.uint16), n))


def _interface(frames: Frames) -> Column:
    n, name = len(frames.ids), frames.interface
    data = np.frombuffer((name or "").encode(), np.uint8)
    one = make_views(data, np.zeros(1, np.int64), np.array([len(data)]), 0, 0)
    return Column(np.repeat(one, n, axis=0), None if name is not None else np.zeros(n, np.bool_), data)


def _field(name: str, has: int) -> Callable[[Frames], Column]:
    def fill(frames: Frames) -> Column:
        headers = frames.headers
        return Column(headers[name], headers["has"] & has != 0)

    return fill


def _address(*, destination: bool) -> Callable[[Frames], Column]:
    def fill(frames: Frames) -> Column:
        headers = frames.headers
        views = np.empty((len(headers), 16), np.uint8)
        data = np.empty(len(headers) * _TEXT_BYTES, np.uint8)
        used = _headers.address_views(headers.view(np.uint8), destination, views.reshape(-1), data)
        return Column(views, headers["has"] & _headers.HAS_IP != 0, data[:used])

    return fill


class _Kind(NamedTuple):
    format: str  # of the C data interface
    nullable: bool
    fill: Callable[[Frames], Column]


PAYLOAD = "payload"  # the one column that points into pages
#: Every column there is: name -> Arrow format, may it be null, how it is filled.
COLUMNS: dict[str, _Kind] = {
    "timestamp": _Kind("tsu:", False, _timestamp),
    "interface": _Kind("vu", True, _interface),
    "queue": _Kind("S", True, _queue),
    "page": _Kind("I", False, lambda frames: Column(frames.ids)),
    "length": _Kind("I", False, lambda frames: Column(frames.lengths)),
    "ethertype": _Kind("S", True, _field("ethertype", _headers.HAS_ETHERTYPE)),
    "vlan": _Kind("S", True, _field("vlan", _headers.HAS_VLAN)),
    "src_ip": _Kind("vu", True, _address(destination=False)),
    "dst_ip": _Kind("vu", True, _address(destination=True)),
    "proto": _Kind("C", True, _field("proto", _headers.HAS_PROTO)),
    "src_port": _Kind("S", True, _field("src_port", _headers.HAS_SRC_PORT)),
    "dst_port": _Kind("S", True, _field("dst_port", _headers.HAS_DST_PORT)),
    PAYLOAD: _Kind("vz", False, _payload),
}
#: What costs next to nothing, and the frames.
METADATA = ("timestamp", "queue", "length", PAYLOAD)
#: Who talks to whom.
FIVE_TUPLE = ("src_ip", "dst_ip", "proto", "src_port", "dst_port")
ALL_COLUMNS = tuple(COLUMNS)


def check_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return them as a tuple, if each is one, once."""
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}: there are {', '.join(COLUMNS)}")
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"columns must be one or more, each once: {', '.join(names) or 'none'}")
    return names


def fill(frames: Frames, columns: Sequence[str]) -> list[Column]:
    """Fill columns."""
    return [COLUMNS[name].fill(frames) for name in columns]

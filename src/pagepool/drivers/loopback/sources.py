# SPDX-License-Identifier: MIT
"""Where frames on the wire come from: an iterator, a capture file, or generated UDP flows.

A source makes frames and knows no device. Invariant: frames come in one order, each once; a source with the
same arguments makes the same frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from pagepool.drivers.capture import read_capture
from pagepool.xdp.driver import U8Array, U32Array

__all__ = ["FrameBlock", "FrameSource", "Frames", "as_source", "block_of"]


class FrameBlock(NamedTuple):
    """Some frames as a matrix.

    Attributes
    ----------
    rows : (n, width) uint8
        One frame per row, padded to the longest; valid until the source is asked again.
    lengths : (n,) uint32
        Bytes of each.
    """

    rows: U8Array
    lengths: U32Array


class FrameSource(Protocol):
    """Makes frames."""

    def take(self, n: int) -> FrameBlock | None:
        """Return the next 1 to `n` frames, or None: there will be no more."""


def block_of(frames: list[bytes]) -> FrameBlock:
    """Return frames as a matrix."""
    lengths = np.fromiter(map(len, frames), np.uint32, len(frames))
    width = max(int(lengths.max(initial=0)), 1)
    rows = np.zeros((len(frames), width), np.uint8)
    for row, frame in zip(rows, frames, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    return FrameBlock(rows, lengths)


class Frames:
    """A source of the frames of an iterable, in its order.

    Parameters
    ----------
    frames : iterable of bytes-like
        Read as they are needed; a generator may be endless.
    """

    def __init__(self, frames: Iterable[Any]) -> None:
        self._frames: Iterator[Any] = iter(frames)
        self._error: Exception | None = None

    def take(self, n: int) -> FrameBlock | None:
        """Return the next frames. An error of the iterable comes after the frames before it, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        frames: list[bytes] = []
        try:
            for frame in islice(self._frames, n):
                frames.append(bytes(frame))
        except Exception as caught:
            if not frames:
                raise
            self._error = caught
        return block_of(frames) if frames else None


def as_source(source: Any) -> FrameSource:
    """Return a source for a path of a capture file, an iterable of frames, or a source."""
    if hasattr(source, "take"):
        return source  # type: ignore[no-any-return]
    if isinstance(source, (str, os.PathLike)):
        return Frames(frame.data for frame in read_capture(source))
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable):
        raise TypeError(f"frames come from a path, an iterable of bytes or a FrameSource, not {type(source).__name__}")
    return Frames(source)

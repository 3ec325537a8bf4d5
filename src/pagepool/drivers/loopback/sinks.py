# SPDX-License-Identifier: MIT
"""Where frames go that leave a queue: a list, a function, a capture file, another NIC, or nowhere.

A sink takes bytes and holds no page. Invariant: what it gets is a copy, its own for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagepool.drivers.capture import PcapngWriter

__all__ = ["FrameSink", "as_sink"]

FrameSink = Callable[[list[bytes]], object]


def as_sink(sink: Any, *, outbound: bool) -> FrameSink | None:
    """Return a function of a list of frames.

    Parameters
    ----------
    sink : None, list, PcapngWriter, object with ``inject``, or callable
        ``None`` counts only. A list gets the frames appended. A `PcapngWriter` writes them. An object with
        ``inject(frames)``, another `LoopbackNic`, receives them. A callable is called with each frame.
    outbound : bool
        How a capture file marks them.
    """
    if sink is None:
        return None
    if isinstance(sink, list):
        return sink.extend
    if isinstance(sink, PcapngWriter):
        writer = sink
        return lambda frames: writer.write_frames(frames, outbound=outbound)
    if hasattr(sink, "inject"):
        return sink.inject  # type: ignore[no-any-return]
    if not callable(sink):
        raise TypeError(f"frames go to a list, a callable, a PcapngWriter or a NIC, not {type(sink).__name__}")
    function = sink

    def each(frames: list[bytes]) -> None:
        for frame in frames:
            function(frame)

    return each

# SPDX-License-Identifier: MIT
"""A page, and a batch of 64 frames, as an array or a tensor, beside copying it.

Everything here starts and ends with the page where it was: made, looked at, let go of. torch has rows where it is
installed; a note says so where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.case import Case, python_loop
from benchmarks.setting import Setting
from pagepool import PagePool
from pagepool.drivers.loopback import LoopbackQueue, UdpFlows
from pagepool.xdp import XdpBatch

__all__ = ["cases"]

COPY = "bytes(page)"
GATHER = "headers(64)[:, :]"
_FRAME_BYTES = 64


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows of one page, of a 2 MiB page, then of a batch."""
    page = stack.enter_context(stack.enter_context(PagePool()).alloc_pages())
    large = stack.enter_context(stack.enter_context(PagePool(order=9, pool_size=4)).alloc_pages())
    view = np.asarray(page)
    rows = [
        _case(COPY, partial(bytes, page), "a copy of 4 KiB", COPY),
        _case("numpy copy", view.copy, "a copy of 4 KiB, array to array", COPY),
        _case("memoryview", lambda: memoryview(page), "memoryview(page)", COPY),
        _case("numpy.asarray", partial(np.asarray, page), "np.asarray(page), the buffer protocol", COPY),
        _case("numpy.from_dlpack", partial(np.from_dlpack, page), "np.from_dlpack(page)", COPY),
        _case("__dlpack__", partial(page.__dlpack__, max_version=(1, 0)), "the capsule alone", COPY),
        _case("__array_interface__", lambda: page.__array_interface__, "the dict alone", COPY),
        _case("bytes(2 MiB page)", partial(bytes, large), "a copy of 2 MiB", "bytes(2 MiB page)"),
        _case("numpy.from_dlpack, 2 MiB", partial(np.from_dlpack, large), "the same call", "bytes(2 MiB page)"),
    ]
    batch, memory = _batch(stack)
    rows += [
        _case(GATHER, lambda: batch.headers(_FRAME_BYTES)[:, :], "64 frames of 64 bytes gathered", GATHER),
        _case(
            "numpy.from_dlpack(headers)",
            lambda: np.from_dlpack(batch.headers(_FRAME_BYTES)),
            "the same, DLPack",
            GATHER,
        ),
        _case("numpy.from_dlpack(batch[0])", lambda: np.from_dlpack(batch[0]), "one frame, held", GATHER),
        _case("batch.lease", batch.lease, "references to 64 pages and back", GATHER),
    ]
    try:
        import torch
    except ImportError:
        setting.notes.append("torch is not installed: its rows are missing")
        return rows
    all_rows = torch.from_dlpack(memory)[:, :_FRAME_BYTES]
    ids = torch.from_numpy(batch.ids.astype(np.int64))
    return [
        *rows,
        _case("torch.from_dlpack", partial(torch.from_dlpack, page), "torch.from_dlpack(page)", COPY),
        _case("torch.from_dlpack, 2 MiB", partial(torch.from_dlpack, large), "the same call", "bytes(2 MiB page)"),
        _case("torch index_select", lambda: all_rows.index_select(0, ids), "64 frames gathered by torch", GATHER),
    ]


def _batch(stack: ExitStack) -> tuple[XdpBatch, Any]:
    queue = stack.enter_context(LoopbackQueue(UdpFlows()))
    batch = queue.poll(64)
    assert batch is not None
    return stack.enter_context(batch), queue.memory


def _case(name: str, make: Callable[[], Any], what: str, against: str) -> Case:
    return Case(name, partial(_repeat, make), what, per="call", against=against if against != name else None)


def _repeat(make: Callable[[], Any], n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        make()
    return perf_counter_ns() - start

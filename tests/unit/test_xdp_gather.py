# SPDX-License-Identifier: MIT
"""A column gathered is the column of the pages, nothing outside the arena is read, and the GIL stays where it is."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.xdp._gather import PageWindow

PAGES = 8
flat = np.random.default_rng(1).integers(0, 256, PAGES << 12, np.uint8)
window = PageWindow(flat)


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(0, PAGES + 2) | st.integers(0, 2**32 - 1), max_size=40),
    first=st.integers(0, 3 * 4096) | st.integers(0, 2**64 - 1),
    width=st.sampled_from([1, 2, 3, 4, 6, 8, 20, 4096, 5000]),
)
def test_it_is_the_bytes_of_the_pages_or_an_error(ids: list[int], first: int, width: int) -> None:
    out = np.zeros((len(ids), width), np.uint8)
    starts = [(page_id << 12) + first for page_id in ids]
    if all(start + width <= flat.size for start in starts):
        window.gather(np.array(ids, np.uint32), first, out)
        assert out.tolist() == [flat[start : start + width].tolist() for start in starts]
    else:
        with pytest.raises(IndexError, match="are not in the 8 pages"):
            window.gather(np.array(ids, np.uint32), first, out)


@pytest.mark.parametrize(
    ("ids", "out", "error"),
    [
        (np.zeros(4, np.uint64), np.zeros(4, np.uint8), TypeError),
        (np.zeros((2, 2), np.uint32), np.zeros(4, np.uint8), TypeError),
        (np.zeros(8, np.uint32)[::2], np.zeros(4, np.uint8), ValueError),
        (np.zeros(4, np.uint32), np.zeros(7, np.uint8), ValueError),
        (np.zeros(4, np.uint32), b"1234", BufferError),
        (None, np.zeros(4, np.uint8), TypeError),
    ],
    ids=["64-bit ids", "two dimensions", "with gaps", "no whole bytes each", "read-only", "nothing"],
)
def test_what_does_not_fit_is_refused(ids: Any, out: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        window.gather(ids, 0, out)


def test_it_keeps_the_memory_and_the_number_of_a_column_is_its_own() -> None:
    memory = bytearray(2 << 12)
    held = PageWindow(memory)
    with pytest.raises(BufferError):
        memory.clear()
    memory[4096 + 12 : 4096 + 14] = b"\x08\x00"
    out = np.empty(2, ">u2")
    held.gather(np.array([1, 0], np.uint32), 12, out)
    assert out.tolist() == [0x0800, 0]
    del held
    memory.clear()


def test_a_batch_is_gathered_without_letting_go_of_the_gil() -> None:
    ids, out = np.zeros(256, np.uint32), np.empty(256, np.uint8)
    turns = [0]
    go, end = threading.Event(), threading.Event()

    def count() -> None:
        go.wait()
        while not end.is_set():
            turns[0] += 1

    other = threading.Thread(target=count)
    other.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(3.0)  # nobody is made to let go of it
    try:
        go.set()
        first = turns[0]
        for _ in range(5000):
            window.gather(ids, 23, out)
        last = turns[0]
    finally:
        sys.setswitchinterval(before)
        end.set()
        other.join()
    assert first == last or not getattr(sys, "_is_gil_enabled", lambda: True)()

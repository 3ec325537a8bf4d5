# SPDX-License-Identifier: MIT
"""The ptr_ring: a bounded FIFO, against a deque, and with threads at both ends."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool._core.ptr_ring import PtrRing


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 0xFFFFFFFE), max_size=50), st.integers(0, 50))),
)
def test_it_is_a_bounded_fifo(size: int, steps: list[tuple[bool, list[int], int]]) -> None:
    ring, model = PtrRing(size), deque[int]()
    for produce, ids, n in steps:
        if produce:
            fits = ids[: size - len(model)]
            assert ring.produce(ids) == len(fits)
            model.extend(fits)
        else:
            assert ring.consume(n) == [model.popleft() for _ in range(min(n, len(model)))]
        assert len(ring) == len(model)
        assert repr(ring) == f"<PtrRing: {len(model)} of {size} ids>"


@pytest.mark.parametrize("size", [0, 16385, 1 << 30])
def test_a_size_out_of_range_is_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match="out of range: 1 to 16384"):
        PtrRing(size)


@pytest.mark.parametrize("value", [-1, 0xFFFFFFFF, 1 << 40])
def test_what_is_no_id_goes_not_in_and_takes_none_along(value: int) -> None:
    ring = PtrRing(4)
    with pytest.raises(ValueError, match="no page id"):
        ring.produce([1, value])
    assert (len(ring), ring.consume(5)) == (0, [])


def test_many_producers_one_consumer_each_id_once_and_each_producer_in_order() -> None:
    ring, producers, each = PtrRing(64), 3, 1500
    got: list[int] = []

    def produce(number: int) -> None:
        ids = deque((number << 20) | n for n in range(each))
        while ids:
            batch = [ids[i] for i in range(min(7, len(ids)))]
            done = ring.produce(batch)
            for _ in range(done):
                ids.popleft()
            if done == 0:
                time.sleep(0.0001)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(producers)]
    for thread in threads:
        thread.start()
    while len(got) < producers * each:
        got += ring.consume(16)
    for thread in threads:
        thread.join()
    assert len(ring) == 0
    for number in range(producers):
        assert [value & 0xFFFFF for value in got if value >> 20 == number] == list(range(each))

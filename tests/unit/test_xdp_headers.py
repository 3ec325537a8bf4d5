# SPDX-License-Identifier: MIT
"""Headers: what is gathered and scattered equals the same index on a plain copy of the frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdp_doubles import RecordingQueue

import pagepool as pp

N, WIDTH, AT = 6, 20, 3


@pytest.fixture(scope="module", params=[0, 2], ids=["order0", "order2"])
def queue(request: pytest.FixtureRequest) -> Iterator[RecordingQueue]:
    with pp.PagePool(order=request.param) as pool:
        yield RecordingQueue(pool)
        pool.check()
        assert pool.lent == 0


def some_frames(seed: int) -> list[bytes]:
    return [row.tobytes() for row in np.random.default_rng(seed).integers(0, 256, (N, 64), np.uint8)]


rows = st.one_of(
    st.slices(N),
    st.integers(-N, N - 1),
    st.lists(st.integers(-N, N - 1), max_size=8).map(lambda x: np.array(x, np.int64)),
    st.lists(st.booleans(), min_size=N, max_size=N).map(lambda x: np.array(x, bool)),
)
cols = st.one_of(
    st.slices(WIDTH),
    st.integers(-WIDTH, WIDTH - 1),
    st.just(Ellipsis),
    st.lists(st.integers(-WIDTH, WIDTH - 1)),
)
offsets = st.one_of(st.integers(0, 4000), st.lists(st.integers(0, 4000), min_size=N, max_size=N))


@settings(max_examples=300, deadline=None)
@given(row=rows, col=cols, offset=offsets, seed=st.integers(0, 1000))
def test_an_index_means_what_it_means_on_an_array(
    queue: RecordingQueue, row: Any, col: Any, offset: Any, seed: int
) -> None:
    if isinstance(col, list):
        # Two lists pair up: give each row one column, as the model demands; a slice is crossed.
        if isinstance(row, np.ndarray):
            length = int(row.sum()) if row.dtype == bool else len(row)
            col = (col * (length + 1) or [0] * length)[:length]
        col = np.array(col, np.int64)
    sources = some_frames(seed)
    with queue.batch(sources, offset) as batch:
        model = np.array([np.frombuffer(f, np.uint8)[AT : AT + WIDTH] for f in sources])
        headers = batch.headers(WIDTH, at=AT)
        assert headers.shape == model.shape
        got, expected = headers[row, col], model[row, col]
        assert np.shape(got) == np.shape(expected)
        assert np.array_equal(got, expected)
        assert np.array_equal(np.asarray(headers), model)

        unique = not isinstance(row, np.ndarray) or row.dtype == bool or len(set((row % N).tolist())) == len(row)
        if unique and not isinstance(col, np.ndarray):
            values = np.random.default_rng(seed + 1).integers(0, 256, np.shape(expected), np.uint8)
            headers[row, col] = values
            model[row, col] = values
            headers[:, 0] ^= 0x55
            model[:, 0] ^= 0x55
            assert np.array_equal(np.asarray(headers), model)
            for i, source in enumerate(sources):
                # Nothing outside the window was touched.
                assert bytes(batch.frame(i)) == source[:AT] + model[i].tobytes() + source[AT + WIDTH :]


@settings(max_examples=60, deadline=None)
@given(offset=offsets, at=st.integers(0, WIDTH - 4), dtype=st.sampled_from([">u2", "<u2", ">u4", "u1", "V3"]))
def test_fields(queue: RecordingQueue, offset: Any, at: int, dtype: str) -> None:
    sources = some_frames(at)
    with queue.batch(sources, offset) as batch:
        headers = batch.headers(WIDTH, at=AT)
        expected = [np.frombuffer(f, dtype, 1, AT + at)[0] for f in sources]
        assert headers.field(at, dtype).tolist() == [x.item() for x in expected]
        if dtype != "V3":
            mask = np.arange(N) % 2 == 0
            headers.set_field(at, dtype, 7, mask)
            assert headers.field(at, dtype).tolist() == [
                7 if m else x.item() for m, x in zip(mask, expected, strict=True)
            ]
            headers.set_field(at, dtype, np.arange(N))
            assert headers.field(at, dtype).tolist() == list(range(N))


def test_a_row_is_the_memory_itself(queue: RecordingQueue) -> None:
    with queue.batch(some_frames(1), 256) as batch:
        row = batch.headers(14)[2]
        row[0] = 0xAB
        assert batch.frame(2)[0] == 0xAB
        batch.frame(2)[13] = 0xCD
        assert row[-1] == 0xCD


def test_a_column_that_is_used_like_an_array(queue: RecordingQueue) -> None:
    with queue.batch(some_frames(2), 256) as batch:
        headers = batch.headers(42)
        before = headers[:, 22].copy()
        headers[:, 22] -= 1
        assert (headers[:, 22] == before - 1).all()
        headers[headers[:, 0] < 128, 6:12] = np.frombuffer(b"\x02\0\0\0\0\1", np.uint8)
        assert ((headers[:, 6:12] == [2, 0, 0, 0, 0, 1]).all(axis=1) | (headers[:, 0] >= 128)).all()
        headers[:, 0:6], headers[:, 6:12] = headers[:, 6:12], headers[:, 0:6]  # swap MACs: gathers are copies


def test_valid_says_who_is_short(queue: RecordingQueue) -> None:
    with queue.batch([bytes(14), bytes(42), bytes(60)]) as batch:
        headers = batch.headers(28, at=14)
        assert headers.valid.tolist() == [False, True, True]
        assert headers.lengths.tolist() == [14, 42, 60]
        assert headers[:, 27].shape == (3,)


def test_the_window_stays_in_the_page(queue: RecordingQueue) -> None:
    page_bytes = queue.memory.page_bytes
    with queue.batch(some_frames(3), 256) as batch:
        assert batch.headers(page_bytes - 256)[:, page_bytes - 257].shape == (N,)
        assert np.asarray(batch.headers(200, at=page_bytes - 456)).shape == (N, 200)
        for n_bytes, at in ((page_bytes - 255, 0), (1, page_bytes - 256), (0, 0), (-1, 0), (4, -1)):
            with pytest.raises(ValueError, match="headers"):
                batch.headers(n_bytes, at)
    with (
        queue.batch(some_frames(3), [0, 0, 0, 0, 0, 256]) as batch,
        pytest.raises(ValueError, match="byte 256"),
    ):
        batch.headers(page_bytes - 255)


@pytest.mark.parametrize("offset", [0, [0, 1, 2, 3, 4, 5]])
def test_bad_indices_raise(queue: RecordingQueue, offset: Any) -> None:
    with queue.batch(some_frames(4), offset) as batch:
        headers = batch.headers(20)
        for key in (
            N,
            -N - 1,
            (0, 20),
            (slice(None), 20),
            (slice(None), -21),
            (slice(None), [0, 20]),
            (slice(None), [0.5]),
            (slice(None), np.ones(19, bool)),
            (slice(None), 0, 0),
            (np.ones(N + 1, bool), 0),
            ([0, N], 0),
            (None, 0),
        ):
            with pytest.raises(IndexError):
                headers[key]
            with pytest.raises(IndexError):
                headers[key] = 0
        with pytest.raises(ValueError, match=r"shape|broadcast"):
            headers[:, 0:4] = np.zeros((N, 3), np.uint8)
        with pytest.raises(IndexError):
            headers.field(19, ">u2")
        with pytest.raises(TypeError):
            headers.field(0, object)
        with pytest.raises(ValueError, match="copy"):
            np.asarray(headers, copy=False)
        assert np.asarray(headers, dtype=np.uint16).dtype == np.uint16
        assert "20" in repr(headers)

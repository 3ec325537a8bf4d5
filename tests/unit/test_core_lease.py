# SPDX-License-Identifier: MIT
"""Leases: references by id, beside whoever owns the pages; and one tensor over pages at equal distances."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import weakref
from array import array
from typing import Any

import numpy as np
import pytest
from core_doubles import Scripted, ids_of, mapping, memory
from dlpack_consumer import IS_COPIED, Taken
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool import PagePool
from pagepool._core.lease import Lease
from pagepool.errors import DeadPageError, ForeignPageError, PagePoolError

V1 = (1, 0)


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


class Interface:
    """What has the array interface of a lease, and keeps the lease, as whoever passes it on must."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.__array_interface__ = lease.__array_interface__


def ascending(pool: PagePool, n: int, step: int = 1) -> array[int]:
    """Pages of the pool, `step` apart."""
    ids = sorted(pool.alloc_bulk(n * step))
    pool.put_bulk(ids_of(page_id for k, page_id in enumerate(ids) if k % step))
    return ids_of(ids[::step])


# -- references --------------------------------------------------------------------------------------------------


def test_more_ids_than_fit_32_bits_of_bytes_are_counted_right() -> None:
    program = """
import numpy as np
from pagepool import PageAllocator, PagePool
from pagepool.errors import ForeignPageError
pool = PagePool(memory=PageAllocator(2 << 20))
pool.alloc_bulk(512)
ids = np.zeros(1 << 30, np.uint32)  # 4 GiB that nobody touches
ids[100_000] = 0xFFFFFFFF
try:
    pool.lease(ids)
except (ForeignPageError, MemoryError) as error:
    print("refused")
assert pool.put_bulk(np.arange(512, dtype=np.uint32)) == 512
assert pool.lent == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_pages_come_home_when_owner_and_lease_have_let_go(pool: PagePool) -> None:
    ids = pool.alloc_bulk(8)
    lease = pool.lease(ids)
    assert (len(lease), lease.ids, lease.pool) == (8, ids, pool)
    assert pool.put_bulk(ids) == 8
    assert pool.put_bulk(ids) == 0
    assert (pool.lent, pool.stats().rejected) == (8, 8)
    assert not set(pool.alloc_bulk(100)) & set(ids)
    del lease
    assert pool.lent == 100
    pool.check()
    later = pool.lease(ids_of(pool.alloc_bulk(4)))
    kept = later.ids
    del later
    assert pool.lent == 104
    assert pool.put_bulk(kept) == 4
    pool.check()


def test_a_handle_may_still_be_made(pool: PagePool) -> None:
    (page_id,) = pool.alloc_bulk(1)
    lease = pool.lease(page_id)
    page = pool.page(page_id)
    page[0] = 5
    with pytest.raises(PagePoolError, match="other references"):
        pool.release_page(page)
    page.put()
    with pytest.raises(DeadPageError):
        page[0]
    assert memoryview(lease)[0] == 5
    assert pool.lent == 1
    del lease
    assert pool.lent == 0
    pool.check()


def test_an_id_twice_is_two_references(pool: PagePool) -> None:
    (page_id,) = pool.alloc_bulk(1)
    lease = pool.lease(ids_of([page_id, page_id]))
    assert not lease.strided
    pool.put_bulk(ids_of([page_id]))
    assert pool.lent == 1
    del lease
    assert pool.lent == 0
    pool.check()


@pytest.mark.parametrize("bad", ["home", "spent", "foreign", "beyond", "other pool"])
def test_what_is_not_lent_is_refused_and_nothing_is_kept(pool: PagePool, bad: str) -> None:
    ids = pool.alloc_bulk(3)
    view: Any = None
    if bad == "home":
        wrong = pool.alloc_bulk(1)[0]
        pool.put_bulk(ids_of([wrong]))
    elif bad == "spent":
        page = pool.alloc_pages()
        wrong, view = page.id, memoryview(page)
        page.put()
    elif bad == "foreign":
        wrong = PagePool(memory=memory(slabs=32)).arena.nr_pages - 1
    elif bad == "beyond":
        wrong = pool.arena.nr_pages
    else:
        wrong = PagePool(memory=pool.memory).alloc_bulk(1)[0]
    lent = pool.lent
    with pytest.raises(ForeignPageError, match=f"page {wrong} is not"):
        pool.lease(ids_of([*ids, wrong]))
    with pytest.raises(ForeignPageError):
        pool.lease(wrong)
    assert pool.lent == lent
    assert pool.put_bulk(ids) == 3
    del view
    assert pool.lent == 0
    pool.check()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("x",), TypeError),
        ((b"\0" * 8,), TypeError),
        ((None,), TypeError),
        ((-1,), ForeignPageError),
        ((1 << 40,), ForeignPageError),
        ((0, -1), ValueError),
        ((0, 4000, 97), ValueError),
        ((0, 5000), ValueError),
        ((0, 0, 4097), ValueError),
    ],
)
def test_bad_arguments_raise(pool: PagePool, arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        pool.lease(*arguments)
    assert pool.lent == 0


def test_a_lease_is_not_made_nor_copied(pool: PagePool) -> None:
    with pytest.raises(TypeError, match=r"PagePool\.lease"):
        Lease()
    with pytest.raises(TypeError, match="memory of this process"):
        copy.copy(pool.lease(pool.alloc_bulk(1)))
    bare = Lease.__new__(Lease)
    assert (len(bare), len(bare.ids), repr(bare)) == (0, 0, "<Lease of nothing>")
    for use in (
        bare.__dlpack__,
        bare.__dlpack_device__,
        lambda: bare.__array_interface__,
        lambda: memoryview(bare),
        lambda: bare.pool,
    ):
        with pytest.raises(TypeError, match=r"PagePool\.lease"):
            use()


def test_it_outlives_the_pool_and_dies_in_any_thread(pool: PagePool) -> None:
    ids = pool.alloc_bulk(8)
    held = [pool.lease(ids)]
    pool.put_bulk(ids)
    pool.close()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert pool.lent == 0
    pool.check()


class Watcher:
    """An observer that keeps something of the pool it watches."""

    kept: Any = None

    def __call__(self, *event: Any) -> None:
        pass


def test_a_cycle_through_a_lease_ends_when_it_is_broken() -> None:
    """As through a live page: the collector does not see it, and so never clears a pool that is still needed."""
    pool = PagePool(memory=memory())
    ids = pool.alloc_bulk(2)
    watcher = Watcher()
    watcher.kept = pool.lease(ids)
    assert not gc.is_tracked(watcher.kept)
    pool.put_bulk(ids)
    pool.set_observer(watcher)
    arena, alive = pool.arena, weakref.ref(pool)
    del pool, watcher
    gc.collect()
    assert alive().lent == 2
    alive().set_observer(None)
    gc.collect()
    assert alive() is None
    arena.check()
    assert arena.nr_free_pages == arena.nr_added_pages


def test_a_lease_in_garbage_with_its_pool() -> None:
    for kind in (memoryview, np.asarray, Interface, lambda lease: lease.__dlpack__(max_version=V1)):
        pool = PagePool(memory=memory())
        ids = ids_of(sorted(pool.alloc_bulk(4)))
        box: list[Any] = [pool, kind(pool.lease(ids))]
        box.append(box)
        arena = pool.arena
        del pool, box
        gc.collect()
        arena.check()


def test_a_device_that_fails_at_the_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Scripted(needs_sync=True)
    pool = PagePool(memory=memory(), **mapping(device, sync=64))
    ids = pool.alloc_bulk(3)
    lease = pool.lease(ids)
    pool.put_bulk(ids)
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(str(report.exc_value)))

    def refuse(_: int) -> None:
        raise OSError("no sync today")

    device.on_sync = refuse
    del lease
    assert seen == ["no sync today"] * 3
    assert (pool.lent, pool.stats().left_sync) == (0, 3)
    pool.check()


# -- the tensor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_pages_at_equal_distances_are_one_tensor(pool: PagePool, step: int) -> None:
    ids = ascending(pool, 5, abs(step))
    if step < 0:
        ids = ids[::-1]
    lease = pool.lease(ids, 64, 100)
    assert lease.strided
    for k, page_id in enumerate(ids):
        memoryview(pool.lease(page_id, 64, 1))[0] = k
    for tensor in (np.asarray(lease), np.asarray(Interface(lease))):
        assert (tensor.shape, tensor.strides) == ((5, 100), (step * 4096, 1))
        assert tensor[:, 0].tolist() == [0, 1, 2, 3, 4]
        tensor[4, 99] = 200
    assert memoryview(pool.lease(ids[4], 163, 1))[0] == 200
    view = memoryview(lease)
    assert (view.shape, view.strides, view.format, view.readonly) == ((5, 100), (step * 4096, 1), "B", False)
    if step > 0:
        taken = Taken(lease.__dlpack__(max_version=V1))
        assert (taken.shape, taken.strides, taken.flags) == ((5, 100), (step * 4096, 1), 0)
        taken.delete()
    else:
        with pytest.raises(BufferError, match="lie backwards"):
            lease.__dlpack__(max_version=V1)
    taken = Taken(lease.__dlpack__(max_version=V1, copy=True))
    assert (taken.shape, taken.strides, taken.flags) == ((5, 100), (100, 1), IS_COPIED)
    assert [taken.read(500)[100 * k] for k in range(5)] == [0, 1, 2, 3, 4]
    taken.delete()


def test_the_tensor_holds_the_pages(pool: PagePool) -> None:
    ids = ascending(pool, 4)
    tensor = np.from_dlpack(pool.lease(ids))
    array = np.asarray(pool.lease(ids))
    pool.put_bulk(ids)
    array[:] = 3
    assert tensor.sum() == 3 * 4 * 4096
    del tensor
    assert pool.lent == 4
    del array
    assert pool.lent == 0
    pool.check()


def test_whole_pages_side_by_side_are_contiguous(pool: PagePool) -> None:
    ids = ascending(pool, 4)
    lease = pool.lease(ids)
    assert memoryview(lease).c_contiguous
    assert len(bytes(lease)) == 4 * 4096
    flat = np.frombuffer(lease, np.uint8)
    assert flat.shape == (4 * 4096,)
    part = pool.lease(ids, 0, 100)
    with pytest.raises(BufferError, match="not contiguous"):
        np.frombuffer(part, np.uint8)
    assert memoryview(part).tobytes() == b"".join(bytes(pool.lease(i, 0, 100)) for i in ids)


def test_one_id_is_one_dimension(pool: PagePool) -> None:
    (page_id,) = pool.alloc_bulk(1)
    lease = pool.lease(page_id, 100, 50)
    array = np.asarray(lease)
    assert (array.shape, array.ctypes.data) == ((50,), pool.arena.base_vaddr + (page_id << 12) + 100)
    assert lease.__array_interface__["shape"] == (50,)
    taken = Taken(lease.__dlpack__(max_version=V1))
    assert (taken.data, taken.shape, taken.strides) == (array.ctypes.data, (50,), (1,))
    taken.delete()
    one = np.asarray(pool.lease(ids_of([page_id])))
    assert one.shape == (1, 4096)


def test_none_is_a_tensor_too(pool: PagePool) -> None:
    lease = pool.lease(ids_of([]), 0, 60)
    assert np.asarray(lease).shape == np.from_dlpack(lease).shape == (0, 60)
    assert lease.strided


def test_pages_here_and_there_are_none(pool: PagePool) -> None:
    ids = ascending(pool, 4)
    ids[1], ids[2] = ids[2], ids[1]
    lease = pool.lease(ids)
    assert not lease.strided
    assert "here and there" in repr(lease)
    for use in (
        lambda: memoryview(lease),
        lambda: lease.__dlpack__(),
        lambda: lease.__dlpack__(copy=True),
        lambda: lease.__array_interface__,
        lambda: np.asarray(lease),
    ):
        with pytest.raises(BufferError, match="equal distances"):
            use()


def test_objects_of_several_pages(pool: PagePool) -> None:
    large = PagePool(memory=pool.memory, order=2, pool_size=8)
    ids = ids_of(sorted(large.alloc_bulk(4)))
    lease = large.lease(ids)
    tensor = np.asarray(lease)
    assert (tensor.shape, tensor.strides) == ((4, 4 * 4096), ((ids[1] - ids[0]) << 12, 1))
    large.put_bulk(ids)
    del tensor, lease
    assert large.lent == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_puts_and_ends(data: st.DataObject) -> None:
    pool = PagePool(memory=memory(), pool_size=8)
    owned: list[int] = []
    leases: list[Lease] = []
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["alloc", "lease", "put", "end", "elsewhere", "close"]))
        if what == "alloc" and not pool.closed:
            owned += pool.alloc_bulk(data.draw(st.integers(1, 20)))
        elif what == "lease" and owned:
            chosen = data.draw(st.lists(st.sampled_from(owned), max_size=8))
            leases.append(pool.lease(ids_of(chosen)))
        elif what == "put" and owned:
            gone = ids_of({owned[k % len(owned)] for k in data.draw(st.lists(st.integers(0, 99), max_size=8))})
            assert pool.put_bulk(gone) == len(gone)
            owned = [page_id for page_id in owned if page_id not in gone]
        elif what == "end" and leases:
            leases.pop(data.draw(st.integers(0, len(leases) - 1)))
        elif what == "elsewhere" and leases:
            box = [leases.pop()]
            thread = threading.Thread(target=box.clear)
            thread.start()
            thread.join()
        elif what == "close":
            pool.close()
        assert pool.lent == len(set(owned).union(*(lease.ids for lease in leases)))
        pool.check()
    leases.clear()
    assert pool.put_bulk(ids_of(owned)) == len(owned)
    assert pool.lent == 0
    pool.check()


def test_leases_end_in_many_threads() -> None:
    pool = PagePool(memory=memory(), pool_size=512)
    for _ in range(40):
        ids = pool.alloc_bulk(64)
        boxes = [[pool.lease(ids) for _ in range(4)] for _ in range(4)]
        start = threading.Barrier(5)

        def work(box: list[Lease], start: threading.Barrier = start) -> None:
            start.wait()
            while box:
                box.pop()

        threads = [threading.Thread(target=work, args=(box,)) for box in boxes]
        for thread in threads:
            thread.start()
        start.wait()
        assert pool.put_bulk(ids) == 64
        for thread in threads:
            thread.join()
        assert pool.lent == 0
        pool.check()

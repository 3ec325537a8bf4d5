# SPDX-License-Identifier: MIT
"""Pages as torch tensors: the same bytes, and the page comes home when torch lets go, on whatever thread."""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
import pytest
from core_doubles import mapping, memory
from xdp_doubles import RecordingQueue

from pagepool import PagePool
from pagepool.dma import HostDevice

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    return torch


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


def test_a_page_is_a_tensor(torch: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    for tensor in (torch.from_dlpack(page), torch.as_tensor(page), torch.utils.dlpack.from_dlpack(page.__dlpack__())):
        assert (tensor.dtype, tuple(tensor.shape), tensor.data_ptr()) == (torch.uint8, (4096,), page.vaddr)
        tensor[7] = 42
        assert page[7] == 42
        page[7] = 0
    del tensor
    assert page.refcount == 1


def test_the_page_comes_home_with_the_last_tensor(torch: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    floats = torch.from_dlpack(page).view(torch.float32).view(32, 32)
    row = floats[3]
    page.put()
    del floats
    row += 1
    assert pool.lent == 1
    gone = threading.Thread(target=lambda box: box.clear(), args=([row],))
    del row
    gone.start()
    gone.join()
    del gone
    assert pool.lent == 0
    pool.check()


def test_copies_and_devices(torch: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    assert torch.from_dlpack(page, device="cpu").data_ptr() == page.vaddr
    assert torch.from_dlpack(page, copy=False).data_ptr() == page.vaddr
    own = torch.from_dlpack(page, copy=True)
    assert own.data_ptr() != page.vaddr
    page.put()
    assert pool.lent == 0


def test_torch_has_no_read_only_tensors(torch: Any, pool: PagePool) -> None:
    """It takes a read-only page without a word; `copy=True` is the safe way. When this fails, the docs are old."""
    page = pool.alloc_pages()
    tensor = torch.from_dlpack(page.toreadonly())
    assert tensor.data_ptr() == page.vaddr
    own = torch.from_dlpack(page.toreadonly(), copy=True)
    own[0] = 1
    assert own.data_ptr() != page.vaddr


def test_pinned_pages_go_to_torch_as_what_the_cpu_reads(torch: Any) -> None:
    """torch does not know pinned host memory by DLPack; a capsule that was asked for the CPU will do."""

    class Pinned(HostDevice):
        dlpack_device = (3, 0)

    pool = PagePool(memory=memory(), **mapping(Pinned("cuda:0")))
    page = pool.alloc_pages()
    assert page.__dlpack_device__() == (3, 0)
    assert torch.from_dlpack(page.__dlpack__(dl_device=(1, 0))).data_ptr() == page.vaddr
    with pytest.raises((RuntimeError, BufferError), match="device_type: 3"):
        torch.from_dlpack(page)
    assert pool.lent == 1
    page.put()
    assert pool.lent == 0


def test_frombuffer_holds_what_it_is_given(torch: Any, pool: PagePool) -> None:
    """torch gives the buffer back at once and keeps the object: so it is given a view, which holds the page."""
    page = pool.alloc_pages()
    tensor = torch.frombuffer(memoryview(page), dtype=torch.uint8)
    assert tensor.data_ptr() == page.vaddr
    page.put()
    assert pool.lent == 1
    del tensor
    assert pool.lent == 0


def test_two_megabytes_received_into_a_tensor(torch: Any) -> None:
    pool = PagePool(memory=memory(), order=9, pool_size=4)
    ours, theirs = socket.socketpair()
    expected = torch.arange(512 * 1024, dtype=torch.int32)
    sender = threading.Thread(target=lambda: (theirs.sendall(expected.numpy()), theirs.close()))
    sender.start()
    page = pool.alloc_pages()
    got = 0
    while count := ours.recv_into(page[got:]):
        got += count
    sender.join()
    ours.close()
    tensor = torch.from_dlpack(page).view(torch.int32)
    assert got == len(page) == 2 << 20
    assert tensor.data_ptr() == page.vaddr
    assert torch.equal(tensor, expected)
    page.put()
    assert pool.lent == 1
    del tensor
    assert pool.lent == 0


# -- batches ------------------------------------------------------------------------------------------------------


def batch_of(pool: PagePool, n: int, **how: Any) -> Any:
    """Frames of 60 bytes, each of its number, on pages that ascend."""
    ids = sorted(pool.alloc_bulk(n))
    if how.pop("scattered", False):
        ids[0], ids[1] = ids[1], ids[0]
    pool.put_bulk(np.array(ids[::-1], np.uint32))
    return RecordingQueue(pool).batch([bytes([i]) * 60 for i in range(n)], **how)


def test_a_batch_is_a_tensor_and_its_verdicts_come_from_it(torch: Any, pool: PagePool) -> None:
    batch = batch_of(pool, 8, offsets=256)
    tensor = torch.from_dlpack(batch)
    assert (tuple(tensor.shape), tensor.stride()) == ((8, 60), (4096, 1))
    assert tensor.data_ptr() == pool.arena.base_vaddr + (int(batch.ids[0]) << 12) + 256
    even = (tensor[:, 0] % 2 == 0).numpy()
    batch.tx(even)
    batch.complete()
    assert [frame[0] for frame in batch.driver.sent] == [0, 2, 4, 6]
    assert pool.lent == 8
    del tensor
    assert pool.lent == 0


def test_a_batch_that_cannot_be_one_ends_no_process(torch: Any, pool: PagePool) -> None:
    """torch 2.13 aborts on a capsule with negative strides: we make none."""
    ids = sorted(pool.alloc_bulk(4))
    pool.put_bulk(np.array(ids, np.uint32))
    batch = RecordingQueue(pool).batch([bytes([i]) * 60 for i in range(4)])
    assert batch.ids.tolist() == ids[::-1]
    for refused in (batch, batch.lease()):
        with pytest.raises(BufferError, match="backwards"):
            torch.from_dlpack(refused)
    assert torch.from_dlpack(batch.headers(60))[:, 0].tolist() == [0, 1, 2, 3]
    batch.complete()


def test_a_scattered_batch_is_gathered_in_one_operation(torch: Any, pool: PagePool) -> None:
    batch = batch_of(pool, 6, scattered=True)
    with pytest.raises(BufferError, match="Gather"):
        torch.from_dlpack(batch)
    rows = torch.from_dlpack(batch.driver.memory)
    assert rows.data_ptr() == pool.arena.base_vaddr
    gathered = rows[:, :60].index_select(0, torch.from_numpy(batch.ids.astype(np.int64)))
    assert torch.equal(gathered, torch.from_dlpack(batch.headers(60)))
    assert gathered[:, 0].tolist() == list(range(6))
    with pytest.raises(IndexError):
        rows.index_select(0, torch.tensor([pool.arena.nr_pages - 1]))
    assert "..." in repr(rows)  # it looks at the first and the last rows: all have memory
    one = torch.from_dlpack(batch[3])
    batch.complete()
    assert pool.lent == 1
    assert one.tolist() == [3] * 60
    del one
    assert pool.lent == 0

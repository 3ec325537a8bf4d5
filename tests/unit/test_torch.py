# SPDX-License-Identifier: MIT
"""Pages as torch tensors: the same bytes, and the page comes home when torch lets go, on whatever thread."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from core_doubles import mapping, memory

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

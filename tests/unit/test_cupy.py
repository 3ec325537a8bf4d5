# SPDX-License-Identifier: MIT
"""Pages as CuPy arrays, as far as that goes without a GPU: the same memory, and the page comes home with the last one.

CuPy makes an array of an address without a driver; nothing is computed here, and nothing is registered with CUDA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_doubles import memory

from pagepool import Page, PagePool

pytestmark = pytest.mark.needs_cupy


@pytest.fixture(scope="module")
def cupy() -> Any:
    import cupy

    return cupy


@pytest.fixture
def pool() -> PagePool:
    return PagePool(memory=memory())


def on_the_page(cupy: Any, page: Page) -> Any:
    # The recipe of docs/tensors.md, with the device named, so that no driver is asked whose memory it is.
    whole = cupy.cuda.UnownedMemory(page.vaddr, len(page), owner=memoryview(page), device_id=0)
    return cupy.ndarray((len(page),), dtype="uint8", memptr=cupy.cuda.MemoryPointer(whole, 0))


def test_an_array_lies_on_the_page(cupy: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    array = on_the_page(cupy, page)
    assert (array.data.ptr, array.shape, array.dtype) == (page.vaddr, (4096,), np.uint8)
    assert array[100:200].data.ptr == page.vaddr + 100
    assert array.view("float32").reshape(32, 32)[3].data.ptr == page.vaddr + 3 * 128


def test_the_page_comes_home_with_the_last_array(cupy: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    array = on_the_page(cupy, page)
    row = array.view("float32").reshape(32, 32)[3]
    page.put()
    del array
    assert pool.lent == 1
    del row
    assert pool.lent == 0
    pool.check()


def test_dlpack_of_host_memory_is_refused_and_the_way_named(cupy: Any, pool: PagePool) -> None:
    page = pool.alloc_pages()
    with pytest.raises(TypeError, match=r"numpy\.from_dlpack"):
        cupy.from_dlpack(page)
    assert page.refcount == 1
    with pytest.raises(TypeError, match=r"numpy\.from_dlpack"):
        cupy.from_dlpack(page.toreadonly())
    page.put()
    pool.check()
    assert pool.lent == 0

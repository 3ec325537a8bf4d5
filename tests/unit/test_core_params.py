# SPDX-License-Identifier: MIT
"""What a pool may be made with: the kernel's rules, each with a text that names the field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from core_doubles import memory

from pagepool import NUMA_NO_NODE, DmaDir, PagePool, PagePoolParams, PPFlag
from pagepool.dma import HostDevice

MAP, SYNC = PPFlag.DMA_MAP, PPFlag.DMA_SYNC_DEV
RX = {"dev": HostDevice(), "dma_dir": DmaDir.FROM_DEVICE}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"flags": 4}, "flags: unknown bits 0x4"),
        ({"flags": -1}, "unknown bits"),
        ({"order": 10}, "order 10 is out of range: 0 to 9"),
        ({"order": -1}, "order -1"),
        ({"pool_size": -1}, "pool_size -1"),
        ({"limit": -1}, "limit -1"),
        ({"limit": 1 << 31}, "limit 2147483648 is out of range"),
        ({"nid": -2}, "nid -2 is no node"),
        ({"nid": 64}, "nid 64 is no node"),
        ({"dma_dir": 4}, "dma_dir 4"),
        ({"flags": MAP, "dma_dir": DmaDir.FROM_DEVICE}, "dev: DMA_MAP needs a device"),
        ({**RX, "flags": MAP, "dma_dir": DmaDir.TO_DEVICE}, "dma_dir TO_DEVICE: DMA_MAP needs"),
        ({**RX, "flags": MAP, "dma_dir": DmaDir.NONE}, "dma_dir NONE"),
        ({**RX, "flags": SYNC, "max_len": 1}, "DMA_SYNC_DEV needs DMA_MAP"),
        ({**RX, "flags": MAP | SYNC}, "max_len 0: DMA_SYNC_DEV needs"),
        ({"max_len": 4097}, "offset 0 \\+ max_len 4097"),
        ({"max_len": 4096, "offset": 1}, "offset 1 \\+ max_len 4096"),
        ({"offset": -1}, "offset -1"),
        ({"max_len": -1}, "max_len -1"),
        ({"memory": "cheese"}, "cheese"),
    ],
)
def test_what_the_kernel_refuses_is_a_value_error_that_names_the_field(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PagePool(**fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"order": "0"}, "order must be an int, not str"),
        ({"order": True}, "order must be an int, not bool"),
        ({"pool_size": 1.5}, "pool_size must be an int"),
        ({"colour": 1}, "unknown field 'colour'; a pool has"),
        ({"memory": 7}, "7|MemoryKind|arena"),
        ({"dev": object(), "flags": MAP}, "no MapGranularity"),
    ],
)
def test_wrong_types_are_type_errors(fields: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        PagePool(**fields)


def test_params_must_be_params() -> None:
    with pytest.raises(TypeError, match="must be PagePoolParams, not dict"):
        PagePool({"order": 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "got"), [(0, 1024), (1, 1), (1000, 1000), (16384, 16384), (1 << 20, 16384)])
def test_the_ring_has_a_default_and_a_cap(asked: int, got: int) -> None:
    pool = PagePool(memory=memory(), pool_size=asked)
    assert pool.params.pool_size == got
    assert pool.ring.size == got


def test_fields_go_over_the_object_and_params_are_frozen() -> None:
    params = PagePoolParams(order=2, pool_size=8)
    pool = PagePool(params, memory=memory(), order=1)
    assert (pool.params.order, pool.params.pool_size, pool.object_bytes) == (1, 8, 8192)
    assert (params.order, params.nid) == (2, NUMA_NO_NODE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.order = 3  # type: ignore[misc]


def test_the_kernels_four_valid_shapes() -> None:
    device = HostDevice()
    for flags, dma_dir, max_len in [
        (PPFlag(0), DmaDir.NONE, 0),
        (MAP, DmaDir.FROM_DEVICE, 0),
        (MAP, DmaDir.BIDIRECTIONAL, 2048),
        (MAP | SYNC, DmaDir.FROM_DEVICE, 4096),
    ]:
        pool = PagePool(memory=memory(), flags=flags, dma_dir=dma_dir, max_len=max_len, dev=device)
        assert pool.dma_dir is dma_dir
        assert pool.alloc_pages().put() is None


@pytest.mark.parametrize("order", range(10))
def test_every_order_gives_whole_aligned_objects(order: int) -> None:
    pool = PagePool(memory=memory(), order=order)
    page = pool.alloc_pages()
    assert len(page) == pool.object_bytes == 4096 << order
    assert page.vaddr % len(page) == 0
    assert page.vaddr == pool.arena.base_vaddr + (page.id << 12)
    page[0], page[len(page) - 1] = 1, 2
    assert (page[0], page[-1]) == (1, 2)


def test_a_pool_is_made_once() -> None:
    pool = PagePool(memory=memory())
    with pytest.raises(RuntimeError, match="made once"):
        pool.__init__()  # type: ignore[misc]
    assert pool.alloc_pages() is not None


def test_a_pool_whose_init_was_forgotten_is_a_closed_one() -> None:
    class Forgetful(PagePool):
        def __init__(self) -> None:
            pass

    pool = Forgetful()
    with pytest.raises(RuntimeError):
        pool.alloc_pages()
    assert (pool.lent, pool.inflight, pool.holders(), pool.closed) == (0, 0, [], True)
    pool.check()
    pool.close()

# SPDX-License-Identifier: MIT
"""The three examples of the kernel's page_pool documentation, ported line by line: registration, poller, unload."""

from __future__ import annotations

import errno
import inspect

import pytest
from core_doubles import Scripted, memory, used_pages

from pagepool import Page, PagePool, kernel
from pagepool.errors import DoublePutError, PagePoolError
from pagepool.kernel import (
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE,
    MEM_TYPE_PAGE_POOL,
    NUMA_NO_NODE,
    PP_FLAG_DMA_MAP,
    XDP_DROP,
    get_page,
    napi_complete_done,
    napi_schedule,
    netif_napi_add,
    page_pool_alloc,
    page_pool_alloc_frag,
    page_pool_create,
    page_pool_destroy,
    page_pool_dev_alloc_pages,
    page_pool_get_dma_addr,
    page_pool_get_dma_dir,
    page_pool_get_stats,
    page_pool_nid_changed,
    page_pool_params,
    page_pool_put_full_page,
    page_pool_put_page,
    page_pool_recycle_direct,
    page_pool_release_page,
    page_pool_update_nid,
    put_page,
    xdp_rxq_info,
    xdp_rxq_info_reg,
    xdp_rxq_info_reg_mem_model,
    xdp_rxq_info_unreg,
)

DESC_NUM = 256


class Driver:
    """``struct priv``: a device, a ring of pages in the device's hands, a pool and its queue."""

    def __init__(self, xdp_prog: bool = True) -> None:
        self.dev = Scripted()
        self.memory = memory()
        self.page_pool, self.xdp_rxq = self.register(xdp_prog)
        self.ring = [self.refill() for _ in range(DESC_NUM)]
        self.napi = netif_napi_add("eth0", self.poll)
        self.stack: list[Page] = []
        self.wire: list[str] = []

    def register(self, xdp_prog: bool) -> tuple[PagePool, kernel.XdpRxqInfo]:
        pp_params = page_pool_params()
        xdp_rxq = xdp_rxq_info()
        pp_params.order = 0
        # internal DMA mapping in page_pool
        pp_params.flags = PP_FLAG_DMA_MAP
        pp_params.pool_size = DESC_NUM
        pp_params.nid = NUMA_NO_NODE
        pp_params.dev = self.dev
        pp_params.dma_dir = DMA_BIDIRECTIONAL if xdp_prog else DMA_FROM_DEVICE
        page_pool = page_pool_create(pp_params, memory=self.memory)
        err = xdp_rxq_info_reg(xdp_rxq, "eth0", 0)
        assert err == 0
        err = xdp_rxq_info_reg_mem_model(xdp_rxq, MEM_TYPE_PAGE_POOL, page_pool)
        assert err == 0
        return page_pool, xdp_rxq

    def refill(self) -> Page:
        page = page_pool_dev_alloc_pages(self.page_pool)
        assert page is not None
        assert page_pool_get_dma_addr(page) in self.dev.mapped
        return page

    def poll(self, budget: int) -> int:
        dma_dir = page_pool_get_dma_dir(self.page_pool)
        assert dma_dir is DMA_BIDIRECTIONAL
        done = 0
        while done < budget and self.wire:
            packet, page = self.wire.pop(0), self.ring.pop(0)
            if packet == "error":
                page_pool_recycle_direct(self.page_pool, page)
            elif packet == "xdp":
                action = XDP_DROP
                if action == XDP_DROP:
                    page_pool_recycle_direct(self.page_pool, page)
            else:
                page_pool_release_page(self.page_pool, page)
                self.stack.append(page)
            new_page = page_pool_dev_alloc_pages(self.page_pool)
            assert new_page is not None
            self.ring.append(new_page)
            done += 1
        if done < budget:
            napi_complete_done(self.napi, done)
        return done

    def unload(self) -> None:
        while self.ring:
            page_pool_put_full_page(self.page_pool, self.ring.pop(), False)
        xdp_rxq_info_unreg(self.xdp_rxq)
        page_pool_destroy(self.page_pool)


def test_a_driver_is_loaded_polled_and_unloaded() -> None:
    driver = Driver()
    pool = driver.page_pool
    assert (pool.users, pool.lent, len(driver.dev.mapped)) == (2, DESC_NUM, DESC_NUM)
    driver.wire = ["xdp"] * 100 + ["error"] * 10 + ["skb"] * 20
    polls = 0

    def emptied() -> bool:
        nonlocal polls
        polls += 1
        return not driver.wire

    napi_schedule(driver.napi)
    assert driver.napi.run(until=emptied) == 130
    assert polls == 3  # a budget of 64 each
    stats: dict[str, int] = {}
    assert page_pool_get_stats(pool, stats)
    assert stats["recycle-cached"] == 110
    assert (pool.lent, len(driver.stack), pool.stats().left_detached) == (DESC_NUM, 20, 20)
    for page in driver.stack:
        page[0] = 1
        assert page.vaddr not in driver.dev.mapped
        put_page(page)
    driver.unload()
    assert (pool.closed, pool.users, pool.inflight, driver.dev.mapped) == (True, 0, 0, {})
    assert (driver.dev.unmapped_twice, used_pages(pool)) == ([], 0)
    driver.napi.close()


def test_the_kernels_benchmark_forces_the_slow_way_by_a_reference() -> None:
    pool = page_pool_create(page_pool_params(nid=NUMA_NO_NODE), memory=memory())
    for _ in range(100):
        page = page_pool_dev_alloc_pages(pool)
        assert page is not None
        kept = get_page(page)
        page_pool_put_page(pool, page, -1, True)
        put_page(kept)
        with pytest.raises(DoublePutError):
            put_page(kept)
    assert pool.stats().released_refcnt == 100
    pool.check()


def test_out_parameters_are_results() -> None:
    pool = page_pool_create(page_pool_params(), memory=memory(), limit=2)
    page, offset = page_pool_alloc_frag(pool, 1000)
    other, other_offset = page_pool_alloc_frag(pool, 1000)
    assert (offset, other_offset) == (0, 1024)
    whole, offset, size = page_pool_alloc(pool, 2049)
    assert (offset, size) == (0, 4096)
    assert page_pool_alloc(pool, 4096) == (None, 0, 0)
    tail, offset, size = page_pool_alloc(pool, 1500)
    assert (offset, size) == (2048, 2048)
    assert None not in (page, other, whole, tail)
    assert page_pool_alloc_frag(pool, 4096) == (None, 0)


def test_errors_are_c_s() -> None:
    with pytest.raises(ValueError, match="dev"):
        page_pool_create(page_pool_params(flags=PP_FLAG_DMA_MAP))
    rxq = xdp_rxq_info()
    pool = page_pool_create(page_pool_params(), memory=memory())
    assert xdp_rxq_info_reg_mem_model(rxq, MEM_TYPE_PAGE_POOL, pool) == -errno.EFAULT
    assert xdp_rxq_info_reg(rxq, "", 0) == -errno.ENODEV
    assert xdp_rxq_info_reg(rxq, "eth0", 0) == 0
    assert kernel.xdp_rxq_info_is_reg(rxq)
    assert xdp_rxq_info_reg_mem_model(rxq, MEM_TYPE_PAGE_POOL, None) == -errno.EINVAL
    assert pool.users == 1
    page_pool_destroy(None)
    assert page_pool_get_stats(None, {}) is False
    page_pool_destroy(pool)
    assert page_pool_dev_alloc_pages.__doc__
    with pytest.raises(PagePoolError):
        page_pool_dev_alloc_pages(pool)


def test_stats_are_added_and_nodes_are_moved() -> None:
    pool = page_pool_create(page_pool_params(), memory=memory())
    stats = {"alloc-slow": 10}
    page = page_pool_dev_alloc_pages(pool)
    page_pool_get_stats(pool, stats)
    assert (stats["alloc-slow"], len(stats)) == (11, 11)
    page_pool_nid_changed(pool, 0)
    assert pool.stats().left_nid == 0
    page_pool_update_nid(pool, 0)
    assert pool.stats().left_nid == 63
    assert page is not None


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert sorted(kernel.__all__) == kernel.__all__
    for name in kernel.__all__:
        thing = getattr(kernel, name)
        if inspect.isfunction(thing):
            assert thing.__doc__, name

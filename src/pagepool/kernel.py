# SPDX-License-Identifier: MIT
"""The kernel's C names as plain functions over the same objects, so that a driver can be ported line by line.

Nothing is kept here and nothing is decided: every function is one call of a method. What C returns as a pointer is
the object or ``None``, what C returns as an ``int`` is 0 or a negative errno, and an ``out`` parameter is one more
result. Misuse that C does not notice (a double put, a page of another pool, the wrong thread) raises as ever.
Source: https://docs.kernel.org/networking/page_pool.html and ``include/net/{page_pool/helpers,xdp}.h`` of Linux 6.18.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from pagepool._core.page import Page
from pagepool._core.page_pool import PagePool
from pagepool._core.params import NUMA_NO_NODE, DmaDir, PagePoolParams, PPFlag
from pagepool.napi import Napi
from pagepool.xdp import MemType, XdpAction, XdpFrame, XdpRxqError, XdpRxqInfo

PP_FLAG_DMA_MAP = PPFlag.DMA_MAP
PP_FLAG_DMA_SYNC_DEV = PPFlag.DMA_SYNC_DEV

DMA_BIDIRECTIONAL = DmaDir.BIDIRECTIONAL
DMA_TO_DEVICE = DmaDir.TO_DEVICE
DMA_FROM_DEVICE = DmaDir.FROM_DEVICE
DMA_NONE = DmaDir.NONE

XDP_ABORTED = XdpAction.ABORTED
XDP_DROP = XdpAction.DROP
XDP_PASS = XdpAction.PASS
XDP_TX = XdpAction.TX
XDP_REDIRECT = XdpAction.REDIRECT

MEM_TYPE_PAGE_SHARED = MemType.PAGE_SHARED
MEM_TYPE_PAGE_ORDER0 = MemType.PAGE_ORDER0
MEM_TYPE_PAGE_POOL = MemType.PAGE_POOL
MEM_TYPE_XSK_BUFF_POOL = MemType.XSK_BUFF_POOL

xdp_rxq_info = XdpRxqInfo

__all__ = [
    "DMA_BIDIRECTIONAL",
    "DMA_FROM_DEVICE",
    "DMA_NONE",
    "DMA_TO_DEVICE",
    "MEM_TYPE_PAGE_ORDER0",
    "MEM_TYPE_PAGE_POOL",
    "MEM_TYPE_PAGE_SHARED",
    "MEM_TYPE_XSK_BUFF_POOL",
    "NUMA_NO_NODE",
    "PP_FLAG_DMA_MAP",
    "PP_FLAG_DMA_SYNC_DEV",
    "XDP_ABORTED",
    "XDP_DROP",
    "XDP_PASS",
    "XDP_REDIRECT",
    "XDP_TX",
    "get_page",
    "napi_complete_done",
    "napi_schedule",
    "netif_napi_add",
    "page_pool_alloc",
    "page_pool_alloc_frag",
    "page_pool_alloc_pages",
    "page_pool_create",
    "page_pool_destroy",
    "page_pool_dev_alloc_frag",
    "page_pool_dev_alloc_pages",
    "page_pool_dma_sync_for_cpu",
    "page_pool_get_dma_addr",
    "page_pool_get_dma_dir",
    "page_pool_get_stats",
    "page_pool_nid_changed",
    "page_pool_params",
    "page_pool_put_full_page",
    "page_pool_put_page",
    "page_pool_recycle_direct",
    "page_pool_release_page",
    "page_pool_update_nid",
    "put_page",
    "xdp_return_frame",
    "xdp_rxq_info",
    "xdp_rxq_info_is_reg",
    "xdp_rxq_info_reg",
    "xdp_rxq_info_reg_mem_model",
    "xdp_rxq_info_unreg",
    "xdp_rxq_info_unreg_mem_model",
]


@dataclass(slots=True)
class page_pool_params:
    """``struct page_pool_params``, zeroed: fill it in and give it to `page_pool_create`.

    Units and rules are those of `pagepool.PagePoolParams`. As in C, ``nid`` 0 is node 0: say `NUMA_NO_NODE`.
    """

    flags: int = 0
    order: int = 0
    pool_size: int = 0
    nid: int = 0
    dev: Any = None
    dma_dir: int = DmaDir.BIDIRECTIONAL
    max_len: int = 0
    offset: int = 0
    napi: Any = None


# -- pools ---------------------------------------------------------------------------------------------------


def page_pool_create(params: page_pool_params | PagePoolParams, **ours: Any) -> PagePool:
    """Make a pool; raises where C returns an error pointer.

    Parameters
    ----------
    params : page_pool_params or PagePoolParams
    **ours
        What the kernel has not: ``limit zero memory track strict``.
    """
    if isinstance(params, PagePoolParams):
        return PagePool(params, **ours)
    named = {field.name: getattr(params, field.name) for field in fields(params)}
    return PagePool(**named, **ours)


def page_pool_destroy(pool: PagePool | None) -> None:
    """Give up the creator's reference; nothing for ``None``."""
    if pool is not None:
        pool.close()


def page_pool_update_nid(pool: PagePool, new_nid: int) -> None:
    """Move the pool to another NUMA node."""
    pool.update_nid(new_nid)


def page_pool_nid_changed(pool: PagePool, new_nid: int) -> None:
    """Move the pool to another NUMA node, if it is another."""
    pool.nid_changed(new_nid)


def page_pool_get_dma_dir(pool: PagePool) -> DmaDir:
    """Return the DMA direction of the pool's mappings."""
    return pool.dma_dir


def page_pool_get_stats(pool: PagePool | None, stats: MutableMapping[str, int]) -> bool:
    """Add the pool's eleven counters to `stats`, as the kernel does; keys have netlink's spelling.

    Returns
    -------
    bool
        ``False`` without a pool.
    """
    if pool is None:
        return False
    for name, value in pool.stats().kernel().items():
        stats[name] = stats.get(name, 0) + value
    return True


# -- pages ---------------------------------------------------------------------------------------------------


def page_pool_alloc_pages(pool: PagePool, gfp: int = 0) -> Page | None:
    """Take a page, or ``None``; `gfp` is C's and means nothing here."""
    return pool.dev_alloc_pages()


def page_pool_dev_alloc_pages(pool: PagePool) -> Page | None:
    """Take a page, or ``None``."""
    return pool.dev_alloc_pages()


def page_pool_alloc_frag(pool: PagePool, size: int, gfp: int = 0) -> tuple[Page | None, int]:
    """Carve `size` bytes; return the fragment (or ``None``) and its offset in the page, in bytes."""
    page = pool.alloc_frag(size)
    return page, page.offset if page is not None else 0


def page_pool_dev_alloc_frag(pool: PagePool, size: int) -> tuple[Page | None, int]:
    """Carve `size` bytes; return the fragment (or ``None``) and its offset in the page, in bytes."""
    return page_pool_alloc_frag(pool, size)


def page_pool_alloc(pool: PagePool, size: int, gfp: int = 0) -> tuple[Page | None, int, int]:
    """Take a page or a fragment, whichever suits; return it (or ``None``), its offset and its true size, in bytes."""
    page = pool.alloc(size)
    return (page, page.offset, len(page)) if page is not None else (None, 0, 0)


def page_pool_put_page(pool: PagePool, page: Page, dma_sync_size: int, allow_direct: bool) -> None:
    """Give a page back; `dma_sync_size` in bytes, -1 for all of ``max_len``."""
    pool.put_page(page, dma_sync_size, allow_direct)


def page_pool_put_full_page(pool: PagePool, page: Page, allow_direct: bool) -> None:
    """Give a page back, all of ``max_len`` synced for the device."""
    pool.put_full_page(page, allow_direct)


def page_pool_recycle_direct(pool: PagePool, page: Page) -> None:
    """Give a page back straight into the cache; the owner's only."""
    pool.recycle_direct(page)


def page_pool_release_page(pool: PagePool, page: Page) -> None:
    """Take a page out of the pool for good; from now on it is an ordinary one, for `put_page`."""
    pool.release_page(page)


def page_pool_get_dma_addr(page: Page) -> int:
    """Return where the device finds the page's first byte."""
    return page.dma_addr


def page_pool_dma_sync_for_cpu(pool: PagePool, page: Page, offset: int, dma_sync_size: int) -> None:
    """Make what the device wrote visible to the CPU; `offset` in bytes from the pool's own."""
    pool.dma_sync_for_cpu(page, offset, dma_sync_size)


def get_page(page: Page) -> Page:
    """Take a memory-management reference of a page.

    Returns
    -------
    Page
        What to give to `put_page`: here a reference is an object, where C has a number to count.
    """
    return page.pool.get_page(page)


def put_page(page: Page) -> None:
    """Give back what `get_page` returned, or a page that `page_pool_release_page` made ordinary."""
    page.put()


# -- queues and polling ----------------------------------------------------------------------------------------


def _errno_of(call: Callable[[], None]) -> int:
    try:
        call()
    except XdpRxqError as error:
        return -(error.errno or 0)
    return 0


def xdp_rxq_info_reg(xdp_rxq: XdpRxqInfo, dev: str, queue_index: int, napi_id: int = 0) -> int:
    """Register a receive queue; 0 or a negative errno."""
    return _errno_of(lambda: xdp_rxq.reg(dev, queue_index, napi_id))


def xdp_rxq_info_reg_mem_model(xdp_rxq: XdpRxqInfo, mem_type: MemType, allocator: PagePool | None) -> int:
    """Say how pages of the queue are returned; 0 or a negative errno. A pool gets one more user."""
    return _errno_of(lambda: xdp_rxq.reg_mem_model(mem_type, allocator))


def xdp_rxq_info_unreg_mem_model(xdp_rxq: XdpRxqInfo) -> None:
    """Take the memory model back, and the pool's user with it."""
    xdp_rxq.unreg_mem_model()


def xdp_rxq_info_unreg(xdp_rxq: XdpRxqInfo) -> None:
    """Unregister the queue and its memory model."""
    xdp_rxq.unreg()


def xdp_rxq_info_is_reg(xdp_rxq: XdpRxqInfo) -> bool:
    """Whether the queue is registered."""
    return xdp_rxq.is_registered


def xdp_return_frame(xdpf: XdpFrame) -> None:
    """Give a frame's page back to the pool it came from."""
    xdpf.return_frame()


def netif_napi_add(dev: str, poll: Callable[[int], int], weight: int = 64) -> Napi:
    """Make the NAPI instance that calls ``poll(budget)``; `dev` names it in reports."""
    return Napi(poll, weight, name=dev)


def napi_schedule(napi: Napi) -> None:
    """Have it polled; any thread."""
    napi.schedule()


def napi_complete_done(napi: Napi, work_done: int) -> bool:
    """Say that a poll is done; ``False`` if it must be polled again."""
    return napi.complete_done(work_done)

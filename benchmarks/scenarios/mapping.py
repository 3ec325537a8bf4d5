# SPDX-License-Identifier: MIT
"""A device that charges for mapping, with the pool and without it; and what judging every access costs.

`Charging` busies the CPU for 4.5 us in each `map` and each `unmap`, what registering 4 KiB as UMEM takes here. With the
pool it is paid once a slab, and a page's round trip is what it is for host memory. The frames of the second half are
written by a device in software (64 bytes through a `DmaBus`), synced, looked at and put: with host memory the write is
a plain store, so what the rows have above it is the debugger's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import Any

from benchmarks.case import Case, python_loop
from benchmarks.setting import Setting
from pagepool import DmaDir, PagePool, PPFlag
from pagepool.dma import Bounce, HostDevice, SoftIommu, bus_of

__all__ = ["cases"]

HOST = "pool, host memory"
FRAME = "frame, host memory"
_CHARGE_NS = 4_500
_BYTES = bytes(range(64))


class Charging(HostDevice):
    """A host device whose map and unmap take their time."""

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        """Map, and keep the CPU busy."""
        _busy()
        return super().map(vaddr, size_bytes, dma_dir)

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        """Unmap, and keep the CPU busy."""
        _busy()
        super().unmap(dma_addr, size_bytes, dma_dir)


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return the rows of pages, then those of frames."""
    rows = [
        Case(HOST, _pages(stack, HostDevice()), "dev_alloc_pages, put_page"),
        Case("pool, device that charges", _pages(stack, Charging()), "the same; the device maps nothing", against=HOST),
        Case("no pool, device that charges", _mapped_each_time(stack), "map, unmap of a page each time", against=HOST),
    ]
    devices: list[tuple[str, Any]] = [
        (FRAME, HostDevice()),
        ("frame, Bounce", Bounce(HostDevice())),
        ("frame, SoftIommu", stack.enter_context(SoftIommu())),
        ("frame, SoftIommu by page", stack.enter_context(SoftIommu(strict=True))),
        ("frame, SoftIommu without syncs", stack.enter_context(SoftIommu(check_syncs=False))),
        ("frame, Bounce of SoftIommu", Bounce(stack.enter_context(SoftIommu()))),
    ]
    for name, device in devices:
        against = None if name == FRAME else FRAME
        rows.append(Case(name, _frames(stack, device), "written, synced, looked at, put", per="frame", against=against))
    return rows


def _pool(stack: ExitStack, device: Any, flags: PPFlag) -> PagePool:
    return stack.enter_context(PagePool(flags=flags, dev=device, dma_dir=DmaDir.BIDIRECTIONAL, max_len=4096))


def _pages(stack: ExitStack, device: Any) -> Callable[[int], int]:
    pool = _pool(stack, device, PPFlag.DMA_MAP)
    pool.put_page(pool.alloc_pages())

    def measure(n: int) -> int:
        alloc: Callable[[], Any] = pool.dev_alloc_pages
        put = pool.put_page
        start = perf_counter_ns()
        for _ in python_loop(n):
            put(alloc())
        return perf_counter_ns() - start

    return measure


def _mapped_each_time(stack: ExitStack) -> Callable[[int], int]:
    device, page = Charging(), stack.enter_context(stack.enter_context(PagePool()).alloc_pages())
    return partial(_map_and_unmap, device, page.vaddr)


def _map_and_unmap(device: Charging, vaddr: int, n: int) -> int:
    start = perf_counter_ns()
    for _ in python_loop(n):
        device.unmap(device.map(vaddr, 4096, DmaDir.BIDIRECTIONAL), 4096, DmaDir.BIDIRECTIONAL)
    return perf_counter_ns() - start


def _frames(stack: ExitStack, device: Any) -> Callable[[int], int]:
    pool = _pool(stack, device, PPFlag.DMA_MAP | PPFlag.DMA_SYNC_DEV)
    bus = bus_of(device)

    def measure(n: int) -> int:
        start = perf_counter_ns()
        for _ in python_loop(n):
            page = pool.alloc_pages()
            if bus is None:
                page[:64] = _BYTES
            else:
                bus.dma_write(page.dma_addr, _BYTES)
            pool.dma_sync_for_cpu(page, 0, 64)
            bytes(page[:64])
            pool.put_page(page, 64)
        return perf_counter_ns() - start

    return measure


def _busy() -> None:
    until = perf_counter_ns() + _CHARGE_NS
    while perf_counter_ns() < until:
        pass

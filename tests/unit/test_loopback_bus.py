# SPDX-License-Identifier: MIT
"""The NIC reaches memory by dma_addr and no other way.

A bus that checks every access sees only mapped, posted bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pagepool import DmaDir, MapGranularity
from pagepool.drivers.loopback import BusError, HostBus, LoopbackQueue, UdpFlows, make_pool


class Iommu:
    """A device whose dma_addrs are not vaddrs; it translates, checks, and counts."""

    name = "iommu"
    needs_sync = True

    def __init__(self, granularity: MapGranularity) -> None:
        self.granularity = granularity
        self.ranges: dict[int, tuple[int, int]] = {}
        self.next = 0x10_0000_0000
        self.reads = self.writes = self.for_cpu = self.for_device = 0

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        dma_addr, self.next = self.next, self.next + size_bytes
        self.ranges[dma_addr] = (vaddr, size_bytes)
        return dma_addr

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        assert self.ranges.pop(dma_addr)[1] == size_bytes

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        self._at(dma_addr, size_bytes)
        self.for_cpu += 1

    def sync_for_device(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        self._at(dma_addr, size_bytes)
        self.for_device += 1

    def _at(self, dma_addr: int, size_bytes: int) -> int:
        for base, (vaddr, length) in self.ranges.items():
            if base <= dma_addr and dma_addr + size_bytes <= base + length:
                return vaddr + dma_addr - base
        raise AssertionError(f"DMA fault at {dma_addr:#x}")

    def dma_write(self, dma_addr: int, data: Any) -> None:
        self.writes += 1
        ctypes.memmove(self._at(dma_addr, len(data)), bytes(data), len(data))

    def dma_read(self, dma_addr: int, size_bytes: int) -> bytes:
        self.reads += 1
        return ctypes.string_at(self._at(dma_addr, size_bytes), size_bytes)


@pytest.mark.parametrize("granularity", [MapGranularity.SLAB, MapGranularity.PAGE])
def test_a_translating_device_sees_every_access(granularity: MapGranularity) -> None:
    device = Iommu(granularity)
    wire: list[bytes] = []
    with make_pool(64, dev=device, flags=3) as pool:
        with LoopbackQueue(UdpFlows(count=200), pool=pool, wire=wire) as queue:
            for batch in queue.poll_forever():
                assert (batch.dma_addr >= 0x10_0000_0000).all()
                batch.tx(np.arange(len(batch)) % 2 == 0)
        stats = pool.stats()
        assert (device.writes, device.reads, device.for_cpu) == (200, 100, 200)
        assert device.for_device == stats.syncs + 100
        assert [int.from_bytes(f[42:46], "big") for f in wire] == list(range(0, 200, 2))
        if granularity is MapGranularity.PAGE:
            assert len(device.ranges) == pool.inflight
    if granularity is MapGranularity.PAGE:
        assert device.ranges == {}


def test_frames_of_a_foreign_device_are_not_accepted() -> None:
    with (
        make_pool(64, dev=Iommu(MapGranularity.PAGE)) as theirs,
        make_pool(64, dev=Iommu(MapGranularity.PAGE)) as ours,
        LoopbackQueue(UdpFlows(count=4), pool=theirs) as queue,
        LoopbackQueue(pool=ours) as other,
    ):
        batch = queue.poll()
        assert batch is not None
        batch.redirect(other)
        batch.complete()
        assert queue.xdp_stats.redirect_dropped == 4


def test_the_host_bus_stays_in_known_memory() -> None:
    with make_pool(64) as pool:
        bus = HostBus(pool)
        base, size_bytes = pool.arena.base_vaddr, pool.arena.size_bytes
        row = np.zeros((1, 64), np.uint8)
        for dma_addr in (base - 1, base + size_bytes - 63, base + size_bytes, 0):
            with pytest.raises(BusError, match="dma_addr"):
                bus.dma_write(dma_addr, bytes(64))
            with pytest.raises(BusError):
                bus.dma_read(dma_addr, 64)
            with pytest.raises(BusError):
                bus.dma_write_rows(np.array([dma_addr], np.uint64), row, np.array([64]))
        with pytest.raises(BusError):
            bus.dma_write_rows(
                np.array([base + 4096, base - 4096], np.uint64), np.zeros((2, 64), np.uint8), np.array([64, 64])
            )
        with pytest.raises(BusError):
            HostBus().dma_read(base, 1)


def test_rows_may_lie_anywhere() -> None:
    with make_pool(64) as pool:
        bus = HostBus(pool)
        ids = pool.alloc_bulk(3)
        at = np.array([pool.dma_addr(i) for i in ids], np.uint64) + np.array([0, 17, 4000], np.uint64)
        rows = np.arange(3 * 90, dtype=np.uint8).reshape(3, 90)
        bus.dma_write_rows(at, rows, np.array([90, 90, 50]))
        assert [bus.dma_read(int(a), n) for a, n in zip(at, (90, 90, 50), strict=True)] == [
            rows[0].tobytes(),
            rows[1].tobytes(),
            rows[2, :50].tobytes(),
        ]
        bus.dma_write(int(at[0]), b"again")
        assert bus.dma_read(int(at[0]), 5) == b"again"
        pool.put_bulk(ids)

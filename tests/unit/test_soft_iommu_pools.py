# SPDX-License-Identifier: MIT
"""Pools and the loopback NIC in front of a software IOMMU: no finding on correct code, exact counts."""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from dma_doubles import TinyDriver, pool_on

from pagepool import PagePool, PPFlag
from pagepool.dma import (
    Bounce,
    Counting,
    DmaBus,
    DmaDevice,
    DmaDir,
    DmaLayer,
    DmaOp,
    FaultInjector,
    FindingKind,
    HostDevice,
    SoftIommu,
    Tracer,
    bus_of,
)
from pagepool.drivers.loopback import LoopbackNic, LoopbackQueue, UdpFlows
from pagepool.errors import DmaFault

K = FindingKind
BOTH = pytest.mark.parametrize("strict", [False, True], ids=["by slab", "by page"])
HEADROOM: dict[str, int] = {"offset": 256, "max_len": 4096 - 256}


def receive(queue: LoopbackQueue, iommu: SoftIommu, frames: int) -> int:
    """Receive frames as a user does: read, rewrite, send a third, keep some, drop the rest."""
    done = 0
    kept: list[Any] = []
    while done < frames:
        batch = queue.poll(64)
        assert batch is not None
        iommu.cpu_read(batch)
        heads = batch.headers(12)
        heads[:, :6] = heads[:, 6:12]
        batch.tx(slice(0, None, 3))
        kept += batch.keep(slice(1, None, 9))
        done += len(batch)
        if len(kept) > 100:
            kept.clear()
    return done


@BOTH
@pytest.mark.parametrize("front", [lambda d: d, Bounce, lambda d: Tracer(FaultInjector(Counting(d)))])
def test_the_loopback_driver_has_no_findings_over_thousands_of_frames(strict: bool, front: Any) -> None:
    wire: list[bytes] = []
    with SoftIommu(strict=strict) as iommu, pool_on(front(iommu), **HEADROOM) as pool:
        with LoopbackQueue(UdpFlows(), pool=pool, wire=wire) as queue:
            assert receive(queue, iommu, 4000) >= 4000
        assert wire
        assert wire[0][:6] == wire[0][6:12]  # the device sent what the CPU wrote
        pool.check()
    assert iommu.findings == ()
    assert iommu.nr_mappings == 0


@BOTH
def test_a_redirect_between_queues_has_no_findings(strict: bool) -> None:
    wires: list[list[bytes]] = [[], []]
    with SoftIommu(strict=strict) as iommu, pool_on(iommu, **HEADROOM) as first, pool_on(iommu, **HEADROOM) as second:
        with (
            LoopbackQueue(UdpFlows(), pool=first, wire=wires[0]) as one,
            LoopbackQueue(nic=LoopbackNic(wire=wires[1]), pool=second) as two,
        ):
            for _ in range(20):
                batch = one.poll()
                assert batch is not None
                batch.redirect(two)
            one.poll()
        assert len(wires[1]) >= 20
    assert iommu.findings == ()


@BOTH
def test_a_pool_that_does_not_sync_is_found_out(strict: bool) -> None:
    iommu = SoftIommu(strict=strict, collect=True)
    with pool_on(iommu, flags=PPFlag.DMA_MAP, **HEADROOM) as pool:
        with LoopbackQueue([b"frame" * 20] * 100, pool=pool) as queue:
            while queue.poll():
                pass
        assert set(iommu.counts) == {K.NOT_SYNCED_FOR_DEVICE}
        assert iommu.findings[0].page_id is not None


@BOTH
def test_a_driver_that_does_not_sync_is_found_out_at_delivery(strict: bool) -> None:
    class Forgetful(DmaLayer):
        """A driver's syncs for the CPU go nowhere."""

        def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
            pass

    iommu = SoftIommu(strict=strict, collect=True)
    with pool_on(Forgetful(iommu), **HEADROOM) as pool:
        with LoopbackQueue([b"frame" * 20] * 100, pool=pool) as queue:
            while batch := queue.poll():
                iommu.cpu_read(batch)
        assert iommu.counts == {K.NOT_SYNCED_FOR_CPU: 100}


def test_a_frame_longer_than_a_page_of_the_ring_raises_through_the_poll() -> None:
    iommu = SoftIommu()
    with pool_on(iommu, offset=256, max_len=1024) as pool:  # the pool gives the device 1024 bytes
        with LoopbackQueue([bytes(1500)], pool=pool) as queue:
            with pytest.raises(DmaFault, match="byte 1024 is the CPU's") as fault:
                queue.poll()
            assert fault.value.finding.page_id is not None  # type: ignore[attr-defined]
        pool.check()


@BOTH
def test_threads_share_a_device_without_findings(strict: bool) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(3)

    def work(iommu: SoftIommu) -> None:
        try:
            start.wait()
            with pool_on(iommu, **HEADROOM) as pool, LoopbackQueue(UdpFlows(), pool=pool, wire=[]) as queue:
                receive(queue, iommu, 1000)
        except BaseException as failure:
            failures.append(failure)

    with SoftIommu(strict=strict) as iommu:
        threads = [threading.Thread(target=work, args=(iommu,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert iommu.findings == ()


# -- counts --------------------------------------------------------------------------------------------------


def traffic(strict: bool) -> tuple[Any, list[bytes], PagePool]:
    iommu = SoftIommu(strict=strict)
    device = Counting(iommu)
    wire: list[bytes] = []
    with iommu, pool_on(device, **HEADROOM) as pool:
        with LoopbackQueue(UdpFlows(), pool=pool, wire=wire) as queue:
            receive(queue, iommu, 3000)
            held = pool.inflight
            if strict:
                assert device.counts.maps == held  # a map for each page that entered, and no more however it recycles
            else:
                assert device.counts.maps == -(-held // 512)  # a map for each slab
        pool_stats = pool.stats()
        assert device.counts.syncs_for_device >= pool_stats.syncs
    counts = device.counts
    assert counts.maps == counts.unmaps
    assert counts.map_bytes == counts.maps * (4096 if strict else 2 << 20)
    return counts, wire, pool


def test_by_slab_and_by_page_give_the_same_results_with_the_counts_of_the_design() -> None:
    (by_slab, wire, one), (by_page, page_wire, other) = traffic(False), traffic(True)
    assert wire == page_wire
    assert one.stats().allocated == other.stats().allocated
    assert one.stats().recycled == other.stats().recycled
    assert one.stats().hold_cnt == other.stats().hold_cnt == by_page.maps
    assert by_slab.maps == 1
    assert (by_slab.syncs_for_cpu, by_slab.syncs_for_device) == (by_page.syncs_for_cpu, by_page.syncs_for_device)
    assert by_slab.sync_bytes == by_page.sync_bytes


@BOTH
def test_recycling_maps_nothing(strict: bool) -> None:
    iommu = SoftIommu(strict=strict)
    device = Counting(iommu)
    with iommu, pool_on(device) as pool:
        for _ in range(1000):
            pool.put_page(pool.alloc_pages())
        assert device.counts.maps == (64 if strict else 1)
        assert device.counts.unmaps == 0


# -- layers --------------------------------------------------------------------------------------------------


def test_a_layer_offers_the_bus_of_its_device() -> None:
    iommu = SoftIommu()
    assert isinstance(iommu, DmaBus)
    assert bus_of(Tracer(Counting(iommu))) is iommu
    bounce = Bounce(iommu)
    assert bus_of(Tracer(bounce)) is bounce
    devices: list[DmaDevice] = [HostDevice(), Tracer(HostDevice())]
    assert [bus_of(device) for device in devices] == [None, None]


@BOTH
def test_refused_maps_and_unmaps_leave_no_finding(strict: bool) -> None:
    with SoftIommu(strict=strict) as iommu:
        device = FaultInjector(iommu)
        device.fail(DmaOp.MAP, every=3, errno=errno.ENOSPC)
        with pool_on(device) as pool:
            pages = [pool.dev_alloc_pages() for _ in range(200)]
            assert any(page is not None for page in pages)
            if strict:
                assert device.injected > 20
            del pages
            pool.check()
    assert iommu.findings == ()


def test_a_refused_unmap_is_a_leak() -> None:
    iommu = SoftIommu(strict=True, collect=True)
    device = FaultInjector(iommu)
    with pool_on(device) as pool:
        pool.alloc_pages().put()
        held = pool.inflight
        device.fail(DmaOp.UNMAP, nth=2, errno=errno.EBUSY)
        with suppress(OSError):
            pool.close()
    assert held > 2
    iommu.close()
    assert iommu.counts == {K.LEAKED_MAPPING: 1}


def test_a_tracer_sees_what_the_iommu_answers() -> None:
    iommu = SoftIommu(entry_limit=0)
    device = Tracer(iommu)
    with pool_on(device) as pool:
        assert pool.dev_alloc_pages() is None
    assert {event.errno for event in device.events} == {errno.ENOSPC}


# -- behind a bounce buffer ----------------------------------------------------------------------------------


@BOTH
def test_findings_behind_a_bounce_buffer_name_the_page(strict: bool) -> None:
    iommu = SoftIommu(strict=strict, collect=True)
    with pool_on(Bounce(iommu)) as pool:
        driver = TinyDriver(pool, "sync for cpu")
        driver.post()
        driver.nic.receive(b"ping")
        page, _ = driver.collect()
        iommu.cpu_read(page)
        (finding,) = iommu.findings
        assert (finding.kind, finding.page_id) == (K.NOT_SYNCED_FOR_CPU, page.id)
        assert finding.vaddr != page.vaddr  # the buffer's
        page.put()
    iommu.close()
    assert len(iommu.findings) == 1


def test_arrays_and_other_buffers_can_be_written() -> None:
    with SoftIommu() as iommu, pool_on(iommu, dma_dir=DmaDir.BIDIRECTIONAL) as pool:
        page = pool.alloc_pages()
        words = np.arange(6, dtype=np.uint16)
        iommu.dma_write(page.dma_addr, words)
        assert iommu.dma_read(page.dma_addr, 12) == words.tobytes()
        iommu.dma_write(page.dma_addr, b"")
        assert iommu.dma_read(page.dma_addr, 0) == b""
        page.put()

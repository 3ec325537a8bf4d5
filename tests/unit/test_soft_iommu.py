# SPDX-License-Identifier: MIT
"""Each kind of finding, provoked by a driver that makes that one mistake; none for the driver that makes none."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from dma_doubles import MAP_AND_SYNC, TinyDriver, pool_on

from pagepool import Page, PagePool, PPFlag
from pagepool.dma import DmaDir, FindingKind, SoftIommu
from pagepool.errors import DmaFault, PagePoolError
from pagepool.memory import PageAllocator

K = FindingKind
BOTH = pytest.mark.parametrize("strict", [False, True], ids=["by slab", "by page"])


def kinds(iommu: SoftIommu) -> list[FindingKind]:
    return [finding.kind for finding in iommu.findings]


def line_of(text: str) -> int:
    """Number of the only line of this file that ends with a comment."""
    (number,) = [i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.endswith(f"# {text}")]
    return number


# -- the right way -------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("fields", [{}, {"offset": 256, "max_len": 3840}, {"order": 2, "max_len": 16384}])
def test_a_driver_without_mistakes_has_no_findings(strict: bool, fields: dict[str, int]) -> None:
    with SoftIommu(strict=strict, check_recycle=True) as iommu, pool_on(iommu, **fields) as pool:
        driver = TinyDriver(pool)
        for number in range(3000):
            driver.post()
            driver.nic.receive(bytes((number % 251,)) * (60 + number % 1400))
            page, length = driver.collect()
            iommu.cpu_read((page.dma_addr + pool.params.offset, length))
            assert page[pool.params.offset] == number % 251
            if number % 3 == 0:
                page[pool.params.offset] = 0xEE
                assert driver.send(page, length)[0] == 0xEE
            pool.put_page(page, length)  # no more than the device may have written
        assert iommu.counts.total() == 0
    assert iommu.findings == ()
    iommu.check()


def test_dma_addrs_are_not_vaddrs_and_are_not_used_twice() -> None:
    with SoftIommu() as iommu, PageAllocator(1 << 22) as memory, memory_page(memory) as page:
        seen = set()
        for _ in range(100):
            dma_addr = iommu.map(page.vaddr, 4096, DmaDir.TO_DEVICE)
            assert dma_addr != page.vaddr
            seen.add(dma_addr)
            iommu.unmap(dma_addr, 4096, DmaDir.TO_DEVICE)
        assert len(seen) == 100


def memory_page(memory: PageAllocator) -> Page:
    return PagePool(memory=memory).alloc_pages()


# -- each mistake --------------------------------------------------------------------------------------------


def unmapped(pool: PagePool, iommu: SoftIommu) -> None:
    page = pool.alloc_pages()
    TinyDriver(pool).nic.send(page.vaddr, 64)  # the CPU's name for it


def wrong_direction(pool: PagePool, iommu: SoftIommu) -> None:
    dma_addr = iommu.map(memory_page(pool.memory).vaddr, 4096, DmaDir.TO_DEVICE)
    iommu.sync_for_device(dma_addr, 4096, DmaDir.TO_DEVICE)
    iommu.dma_write(dma_addr, b"x")
    iommu.unmap(dma_addr, 4096, DmaDir.TO_DEVICE)


def out_of_range(pool: PagePool, iommu: SoftIommu) -> None:
    neighbours = [pool.alloc_pages() for _ in range(4)]
    iommu.dma_write(min(page.dma_addr for page in neighbours), bytes(4097))


def not_synced_for_device(pool: PagePool, iommu: SoftIommu) -> None:
    driver = TinyDriver(pool, "sync for device")
    driver.post()
    driver.nic.receive(b"ping")
    driver.send(*driver.collect())


def not_synced_for_device_after_a_write(pool: PagePool, iommu: SoftIommu) -> None:
    page = pool.alloc_pages()  # it comes synced for the device
    page[100] ^= 0xFF
    iommu.dma_read(page.dma_addr, 200)


def not_synced_for_cpu(pool: PagePool, iommu: SoftIommu) -> None:
    driver = TinyDriver(pool, "sync for cpu")
    driver.post()
    driver.nic.receive(b"ping")
    page, _ = driver.collect()
    iommu.cpu_read(page)


def not_synced_for_cpu_before_a_write(pool: PagePool, iommu: SoftIommu) -> None:
    driver = TinyDriver(pool)
    driver.post()
    driver.nic.receive(b"ping")
    driver.pages[0][1] = 0x55
    driver.collect()


def use_after_unmap(pool: PagePool, iommu: SoftIommu) -> None:
    page = memory_page(pool.memory)
    dma_addr = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
    iommu.unmap(dma_addr, 4096, DmaDir.FROM_DEVICE)
    iommu.dma_write(dma_addr, b"late")


def double_map(pool: PagePool, iommu: SoftIommu) -> None:
    page = memory_page(pool.memory)
    first = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
    try:
        second = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
        iommu.unmap(second, 4096, DmaDir.FROM_DEVICE)
    finally:
        iommu.unmap(first, 4096, DmaDir.FROM_DEVICE)


def double_unmap(pool: PagePool, iommu: SoftIommu) -> None:
    page = memory_page(pool.memory)
    dma_addr = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
    iommu.unmap(dma_addr, 4096, DmaDir.FROM_DEVICE)
    iommu.unmap(dma_addr, 4096, DmaDir.FROM_DEVICE)


def mismatched_unmap(pool: PagePool, iommu: SoftIommu) -> None:
    page = memory_page(pool.memory)
    dma_addr = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
    try:
        iommu.unmap(dma_addr, 4096, DmaDir.TO_DEVICE)
    except DmaFault:
        iommu.unmap(dma_addr, 4096, DmaDir.FROM_DEVICE)
        raise


def sync_in_the_wrong_direction(pool: PagePool, iommu: SoftIommu) -> None:
    page = memory_page(pool.memory)
    dma_addr = iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)
    try:
        iommu.sync_for_device(dma_addr, 64, DmaDir.TO_DEVICE)
    finally:
        iommu.unmap(dma_addr, 4096, DmaDir.FROM_DEVICE)


MISTAKES: list[tuple[FindingKind, Callable[[PagePool, SoftIommu], None]]] = [
    (K.UNMAPPED, unmapped),
    (K.WRONG_DIRECTION, wrong_direction),
    (K.WRONG_DIRECTION, sync_in_the_wrong_direction),
    (K.OUT_OF_RANGE, out_of_range),
    (K.NOT_SYNCED_FOR_DEVICE, not_synced_for_device),
    (K.NOT_SYNCED_FOR_DEVICE, not_synced_for_device_after_a_write),
    (K.NOT_SYNCED_FOR_CPU, not_synced_for_cpu),
    (K.NOT_SYNCED_FOR_CPU, not_synced_for_cpu_before_a_write),
    (K.USE_AFTER_UNMAP, use_after_unmap),
    (K.DOUBLE_MAP, double_map),
    (K.DOUBLE_UNMAP, double_unmap),
    (K.MISMATCHED_UNMAP, mismatched_unmap),
]
EACH = pytest.mark.parametrize(("kind", "mistake"), MISTAKES, ids=[mistake.__name__ for _, mistake in MISTAKES])


@BOTH
@EACH
def test_collects_a_mistake_and_goes_on(
    strict: bool, kind: FindingKind, mistake: Callable[[PagePool, SoftIommu], None]
) -> None:
    with SoftIommu(strict=strict, collect=True) as iommu, pool_on(iommu) as pool:
        mistake(pool, iommu)
        (finding,) = iommu.findings
        assert finding.kind is kind
        assert (finding.call_sites[0][0], finding.call_sites[0][2]) in [
            (__file__, mistake.__name__),
            (str(Path(__file__).with_name("dma_doubles.py")), finding.call_sites[0][2]),
        ]
        if kind is not K.UNMAPPED:
            assert finding.history[0].what.startswith("mapped")
            assert finding.page_id is not None
        assert str(kind) in iommu.report()
        with pytest.raises(DmaFault, match="1 finding"):
            iommu.check()
    assert len(iommu.findings) == 1


@BOTH
@EACH
def test_raises_a_mistake_at_once(
    strict: bool, kind: FindingKind, mistake: Callable[[PagePool, SoftIommu], None]
) -> None:
    iommu = SoftIommu(strict=strict)
    with pool_on(iommu) as pool:
        with pytest.raises(DmaFault, match=str(kind)) as fault:
            mistake(pool, iommu)
        assert fault.value.finding == iommu.findings[0]
        assert isinstance(fault.value, PagePoolError)


@BOTH
def test_a_page_that_left_its_pool_is_out_of_reach_only_by_page(strict: bool) -> None:
    with SoftIommu(strict=strict, collect=True) as iommu, pool_on(iommu) as pool:
        page = pool.alloc_pages()
        dma_addr = page.dma_addr
        pool.release_page(page)  # left the pool
        iommu.dma_write(dma_addr, b"late")
        assert kinds(iommu) == ([K.USE_AFTER_UNMAP] if strict else [])  # a slab's mapping stays: an IOMMU sees no more
        if strict:
            assert iommu.findings[0].history[-1].what == "unmapped"
            assert iommu.findings[0].history[-1].call_sites[0][1] == line_of("left the pool")
            assert bytes(page[:4]) != b"late"


# -- what a finding says -------------------------------------------------------------------------------------


@BOTH
def test_a_finding_names_the_page_its_history_and_the_users_lines(strict: bool) -> None:
    with SoftIommu("nic7", strict=strict, collect=True) as iommu, pool_on(iommu) as pool:
        page = pool.alloc_pages()  # mapped here
        dma_addr = page.dma_addr
        iommu.dma_write(dma_addr, b"first")  # device wrote here
        pool.dma_sync_for_cpu(page, 0, 5)  # synced here
        iommu.dma_write(dma_addr, b"again")  # wrong here
        (finding,) = iommu.findings
        assert (finding.page_id, finding.vaddr, finding.size_bytes) == (page.id, page.vaddr, 5)
        assert finding.dma_addr == dma_addr
        assert finding.call_sites[0][:2] == (__file__, line_of("wrong here"))
        told = [(entry.what, entry.call_sites[0][1]) for entry in finding.history]
        assert told == [
            ("mapped BIDIRECTIONAL", line_of("mapped here")),
            ("synced for the device", line_of("mapped here")),
            ("written by the device", line_of("device wrote here")),
            ("synced for the CPU", line_of("synced here")),
        ]
        text = iommu.report()
        assert text.startswith(
            "nic7: 1 finding\n1. not synced for the device: device write, of which byte 0 is the CPU's"
        )
        assert f"page {page.id}" in text
        assert f"{__file__}:{line_of('synced here')}" in text
        with pytest.raises(dataclasses.FrozenInstanceError):
            finding.kind = K.UNMAPPED  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(finding)) == finding
        assert pickle.loads(pickle.dumps(DmaFault("text", finding))).finding == finding
        page.put()


def test_a_page_of_a_higher_order_is_named_by_its_first_page() -> None:
    with SoftIommu(collect=True) as iommu, pool_on(iommu, order=3, max_len=32768) as pool:
        page = pool.alloc_pages()
        iommu.dma_write(page.dma_addr + 20000, bytes(20000))
        iommu.dma_write(page.dma_addr + 20000, bytes(12768))
        (finding,) = iommu.findings
        assert (finding.kind, finding.page_id) == (K.OUT_OF_RANGE, page.id)
        page.put()


def test_findings_of_one_line_are_shown_once_and_all_are_counted() -> None:
    with SoftIommu(collect=True, max_findings=10) as iommu:
        for _ in range(25):
            iommu.dma_read(0x5000, 8)
        assert len(iommu.findings) == 10
        assert iommu.counts == {K.UNMAPPED: 25}
        text = iommu.report()
        assert text.startswith("soft-iommu: 25 findings")
        assert text.count("test_soft_iommu.py") == 1
        assert "[10 times" in text
        assert "15 more" in text


def test_leaks_are_told_by_the_lines_that_mapped() -> None:
    iommu = SoftIommu(collect=True)
    with PageAllocator(1 << 22) as memory, memory_page(memory) as page:
        iommu.map(page.vaddr, 4096, DmaDir.TO_DEVICE)  # first leak
        iommu.map(page.vaddr, 4096, DmaDir.FROM_DEVICE)  # second leak
        iommu.close()
    text = iommu.report()
    assert text.startswith("soft-iommu: 2 findings")
    assert f"{__file__}:{line_of('first leak')}" in text
    assert f"{__file__}:{line_of('second leak')}" in text


def test_no_findings_say_so() -> None:
    assert SoftIommu("clean").report() == "clean: no findings"
    with pytest.raises(ValueError, match="max_findings 0"):
        SoftIommu(max_findings=0)


# -- what an access does -------------------------------------------------------------------------------------


def test_a_refused_access_moves_nothing() -> None:
    with SoftIommu(collect=True, strict=True) as iommu, pool_on(iommu, dma_dir=DmaDir.FROM_DEVICE) as pool:
        page = pool.alloc_pages()
        page[:] = b"\x11" * 4096
        assert iommu.dma_read(page.dma_addr, 16) == b"\xff" * 16
        iommu.dma_write(page.dma_addr + 4090, b"\x22" * 10)
        assert bytes(page[:]) == b"\x11" * 4096
        assert kinds(iommu) == [K.WRONG_DIRECTION, K.OUT_OF_RANGE]
        page.put()


def test_a_missing_sync_lets_bytes_through_when_collecting_only() -> None:
    for collect in True, False:
        with SoftIommu(collect=collect) as iommu, pool_on(iommu, flags=PPFlag.DMA_MAP) as pool:
            page = pool.alloc_pages()  # mapped, and nobody synced it
            page[:1] = b"\0"
            try:
                iommu.dma_write(page.dma_addr, b"\x33")
            except DmaFault:
                assert not collect
            assert page[0] == (0x33 if collect else 0)
            page.put()


def test_memory_that_went_away_is_a_finding_and_no_crash() -> None:
    import ctypes
    import mmap

    memory = mmap.mmap(-1, 8192)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with SoftIommu(collect=True) as iommu:
        dma_addr = iommu.map(vaddr, 8192, DmaDir.BIDIRECTIONAL)
        iommu.sync_for_device(dma_addr, 8192, DmaDir.BIDIRECTIONAL)
        memory.close()
        assert iommu.dma_read(dma_addr, 4) == b"\xff" * 4
        iommu.unmap(dma_addr, 8192, DmaDir.BIDIRECTIONAL)
    assert kinds(iommu) == [K.UNMAPPED]
    assert "given back to the system" in iommu.findings[0].what


def test_a_length_below_nothing_is_a_value_error() -> None:
    with SoftIommu() as iommu, pytest.raises(ValueError, match="-1 bytes"):
        iommu.dma_read(0x1000, -1)


# -- the CPU's side ------------------------------------------------------------------------------------------


def test_an_announced_write_makes_bytes_the_cpus() -> None:
    with SoftIommu(collect=True) as iommu, pool_on(iommu) as pool:
        driver = TinyDriver(pool)
        page = pool.alloc_pages()
        iommu.cpu_write(page)
        page[:4] = b"ping"
        assert driver.send(page, 4) == b"ping"
        assert iommu.findings == ()
        iommu.cpu_write((page.dma_addr, 2))
        iommu.dma_read(page.dma_addr, 1)
        assert kinds(iommu) == [K.NOT_SYNCED_FOR_DEVICE]
        assert iommu.findings[0].history[-1].what == "written by the CPU"
        page.put()


def test_a_write_that_is_not_synced_is_reported_once() -> None:
    with SoftIommu(collect=True) as iommu, pool_on(iommu) as pool:
        page = pool.alloc_pages()
        page[:2] = bytes(255 - byte for byte in page[:2])
        for _ in range(3):
            iommu.dma_read(page.dma_addr, 64)
        assert kinds(iommu) == [K.NOT_SYNCED_FOR_DEVICE]
        pool.dma_sync_for_cpu(page, 0, 64)
        page[:2] = b"ok"  # the CPU's now
        pool.dma_sync_for_cpu(page, 0, 64)
        assert len(iommu.findings) == 1
        page.put()


def test_a_put_that_syncs_too_little_shows_at_the_next_longer_frame() -> None:
    with SoftIommu(collect=True) as iommu, pool_on(iommu) as pool:
        driver = TinyDriver(pool)
        for length, dma_sync_size in [(500, 100), (100, 100), (101, 101)]:
            driver.post()
            driver.nic.receive(bytes(length))
            page, _ = driver.collect()
            pool.put_page(page, dma_sync_size)
        assert kinds(iommu) == [K.NOT_SYNCED_FOR_DEVICE]
        assert "byte 100 is the CPU's" in iommu.findings[0].what


def test_bytes_that_go_back_unread_are_reported_if_asked() -> None:
    for check_recycle in False, True:
        with SoftIommu(collect=True, check_recycle=check_recycle) as iommu, pool_on(iommu) as pool:
            driver = TinyDriver(pool, "sync for cpu")
            driver.post()
            driver.nic.receive(b"ping")
            page, _ = driver.collect()
            page.put()
            assert kinds(iommu) == [K.NOT_SYNCED_FOR_CPU] * check_recycle


# -- the end -------------------------------------------------------------------------------------------------


@BOTH
def test_a_mapping_left_over_is_a_leak(strict: bool) -> None:
    with pool_on(SoftIommu()) as other:
        page = memory_page(other.memory)
        with (
            pytest.raises(DmaFault, match=r"1 finding\n1\. leaked mapping: still mapped at the end"),
            SoftIommu(strict=strict) as iommu,
        ):
            iommu.map(page.vaddr, 4096, DmaDir.TO_DEVICE)  # leaks
        assert kinds(iommu) == [K.LEAKED_MAPPING]
        assert iommu.findings[0].history[0].call_sites[0][1] == line_of("leaks")
        iommu.close()
        assert len(iommu.findings) == 1


@BOTH
def test_a_pool_that_is_still_open_holds_leaked_mappings(strict: bool) -> None:
    iommu = SoftIommu(strict=strict, collect=True)
    with pool_on(iommu) as pool:
        pool.alloc_pages().put()
        iommu.close()
        assert iommu.counts == {K.LEAKED_MAPPING: pool.inflight if strict else 1}
        assert repr(pool) in iommu.findings[0].what
    assert iommu.counts.total() == len(iommu.findings)  # the pool's own end is no finding
    assert iommu.nr_mappings == 0


@BOTH
def test_an_exception_on_its_way_is_not_hidden_by_leaks(strict: bool) -> None:
    with pool_on(SoftIommu()) as other:
        page = memory_page(other.memory)
        iommu = SoftIommu(strict=strict)
        with pytest.raises(KeyError), iommu:
            raise KeyError(iommu.map(page.vaddr, 4096, DmaDir.TO_DEVICE))
        assert kinds(iommu) == [K.LEAKED_MAPPING]


def test_pools_of_two_directions_share_memory_without_a_finding() -> None:
    with SoftIommu() as iommu, pool_on(iommu) as pool:
        other = PagePool(flags=MAP_AND_SYNC, dev=iommu, dma_dir=DmaDir.FROM_DEVICE, max_len=4096, memory=pool.memory)
        with other:
            pages = [pool.alloc_pages(), other.alloc_pages()]
            assert pages[0].vaddr >> 21 == pages[1].vaddr >> 21
            assert iommu.nr_mappings == 2
            del pages
        # The second is closed and idle, its mapping ends with the device; the first is not, and has leaked.
        with pytest.raises(DmaFault, match="leaked"):
            iommu.close()
        assert [finding.history[0].what for finding in iommu.findings] == ["mapped BIDIRECTIONAL"]

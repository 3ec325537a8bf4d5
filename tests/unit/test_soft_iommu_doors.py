# SPDX-License-Identifier: MIT
"""The CPU's accesses are judged where they come through a page or a batch, with no word from the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dma_doubles import TinyDriver, pool_on

from pagepool import Page, PagePool
from pagepool.dma import Bounce, DmaDir, DmaLayer, FindingKind, SoftIommu, Tracer
from pagepool.drivers.loopback import LoopbackQueue
from pagepool.errors import DmaFault
from pagepool.xdp import XdpAction, per_frame

K = FindingKind
BOTH = pytest.mark.parametrize("strict", [False, True], ids=["by slab", "by page"])
HEADROOM: dict[str, int] = {"offset": 256, "max_len": 4096 - 256}

LOOKS: dict[str, Callable[[Page], Any]] = {
    "one byte": lambda page: page[1],
    "a slice": lambda page: bytes(page[:4]),
    "a memoryview": memoryview,
    "an array": lambda page: np.frombuffer(page, np.uint8),
    "the array interface": lambda page: np.asarray(page).sum(),
    "DLPack": np.from_dlpack,
    "a write of one byte": lambda page: page.__setitem__(1, 0x55),
    "a write of a slice": lambda page: page.__setitem__(slice(0, 4), b"pong"),
    "a second handle": lambda page: bytes(page.toreadonly()[:4]),
}
EACH = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())


def received(pool: PagePool, *mistakes: str) -> Page:
    driver = TinyDriver(pool, *mistakes)
    driver.post()
    driver.nic.receive(b"ping")  # device wrote here
    page, _ = driver.collect()
    return page


@BOTH
@EACH
def test_a_look_at_a_page_that_nobody_synced_is_found(strict: bool, look: Callable[[Page], Any]) -> None:
    with SoftIommu(strict=strict, collect=True) as iommu, pool_on(iommu) as pool:
        page = received(pool, "sync for cpu")
        look(page)
        (finding,) = iommu.findings
        assert (finding.kind, finding.page_id) == (K.NOT_SYNCED_FOR_CPU, page.id)
        assert finding.call_sites[0][0] == __file__
        assert [entry.what for entry in finding.history][-2:] == ["written by the device", "accessed by the CPU"]
        look(page)  # the same mistake: told once
        assert iommu.counts == {K.NOT_SYNCED_FOR_CPU: 1}
        page.put()


@BOTH
@EACH
def test_a_look_after_the_sync_is_fine(strict: bool, look: Callable[[Page], Any]) -> None:
    with SoftIommu(strict=strict) as iommu, pool_on(iommu) as pool:
        page = received(pool)
        look(page)
        page.put()
    iommu.check()


@EACH
def test_in_raise_mode_the_bytes_are_not_shown(look: Callable[[Page], Any]) -> None:
    with SoftIommu() as iommu, pool_on(iommu) as pool:
        page = received(pool, "sync for cpu")
        with pytest.raises(DmaFault, match="not synced for the CPU"):
            look(page)
        assert page.put() is None  # no export was left behind
        pool.check()
        assert pool.lent == 0


def test_what_the_device_did_not_write_may_be_looked_at() -> None:
    with SoftIommu() as iommu, pool_on(iommu) as pool:
        page = pool.alloc_pages()  # the device's, and nothing in it yet
        page[:4] = b"ping"
        assert bytes(page[:4]) == b"ping"
        page.put()
        page = received(pool, "sync for cpu")
        assert page[4] in range(256)  # the frame had four bytes
        page.put()
        left = received(pool)
        pool.release_page(left)  # not mapped, or no matter of the device's any more
        assert bytes(left[:4]) == b"ping"


def test_fragments_are_judged_by_their_own_bytes() -> None:
    with SoftIommu(collect=True) as iommu, pool_on(iommu) as pool:
        first, second = pool.alloc_frag(1024), pool.alloc_frag(1024)
        iommu.sync_for_device(second.dma_addr, 1024, DmaDir.BIDIRECTIONAL)
        iommu.dma_write(second.dma_addr, b"ping")
        assert bytes(first)[:0] == b""
        assert not iommu.findings
        assert bytes(second[:4]) == b"ping"
        assert iommu.counts == {K.NOT_SYNCED_FOR_CPU: 1}
        first.put()
        second.put()


# -- batches -------------------------------------------------------------------------------------------------


class Forgetful(DmaLayer):
    """A driver's syncs for the CPU go nowhere."""

    def sync_for_cpu(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        pass


def by_frame(batch: Any) -> None:
    per_frame(lambda buff: XdpAction.DROP if buff.data[0] else XdpAction.PASS)(batch)


DOORS: dict[str, Callable[[Any], Any]] = {
    "headers": lambda batch: batch.headers(14)[:, 12],
    "headers behind the first bytes": lambda batch: batch.headers(4, at=20)[:, 0],
    "frame": lambda batch: [bytes(batch.frame(i)) for i in range(len(batch))],
    "per frame": by_frame,
    "keep": lambda batch: [page[0] for page in batch.keep()],
    "lease": lambda batch: batch.lease(),
    "lease_frame": lambda batch: [batch.lease_frame(i) for i in range(len(batch))],
}


@pytest.fixture(params=[Forgetful, lambda device: Tracer(Forgetful(device)), lambda device: Forgetful(Bounce(device))])
def forgetful(request: pytest.FixtureRequest) -> Iterator[tuple[SoftIommu, LoopbackQueue]]:
    iommu = SoftIommu(collect=True)
    with pool_on(request.param(iommu), **HEADROOM) as pool:
        queue = LoopbackQueue([b"frame" * 20] * 20, pool=pool)
        yield iommu, queue
        queue.close()


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_a_batch_of_a_driver_that_does_not_sync(
    door: Callable[[Any], Any], forgetful: tuple[SoftIommu, LoopbackQueue]
) -> None:
    iommu, queue = forgetful
    batch = queue.poll(8)
    assert batch is not None
    assert not iommu.findings
    held = door(batch)
    assert iommu.counts == {K.NOT_SYNCED_FOR_CPU: len(batch)}
    finding = iommu.findings[-1]
    assert finding.page_id in batch.ids.tolist()
    assert finding.call_sites[0][0] == __file__
    del held


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_a_batch_of_a_driver_that_does(door: Callable[[Any], Any]) -> None:
    with SoftIommu(check_recycle=True) as iommu, pool_on(iommu, **HEADROOM) as pool:
        queue = LoopbackQueue([b"frame" * 20] * 20, pool=pool)
        batch = queue.poll(8)
        assert batch is not None
        held = door(batch)
        del held, batch
        queue.close()
    iommu.check()


def test_other_devices_are_not_asked(tmp_path: Path) -> None:
    with LoopbackQueue([b"frame" * 20] * 20) as queue:
        assert queue.memory.cpu_access is None
        batch = queue.poll(8)
        assert batch is not None
        assert bytes(batch.frame(0)) == b"frame" * 20

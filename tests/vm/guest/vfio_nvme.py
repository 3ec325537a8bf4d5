# SPDX-License-Identifier: MIT
"""An NVMe disk reads and writes pool pages, scattered as they come: another device on the same pool."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from pagepool import DmaDir, PageAllocator, PagePool, PPFlag
from pagepool.dma import VfioDevice
from pagepool.drivers.vfio.nvme import READ, WRITE, NvmeDisk
from pagepool.errors import DeviceError, NotSupportedError

from .support import host
from .support.plan import device
from .support.suite import cases

PAGE, SLAB = 4096, 2 << 20


@contextmanager
def disk_and_pool(strict: bool = False) -> Iterator[tuple[NvmeDisk, PagePool, np.ndarray]]:
    """Open the disk and a pool for it; also the pool's memory, one row per page."""
    dev = VfioDevice(device("nvme").bdf, bind=True, strict=strict)
    memory = PageAllocator(16 * SLAB, commit=True)
    with NvmeDisk(dev) as disk:
        pool = PagePool(flags=PPFlag.DMA_MAP, dev=dev, memory=memory)
        yield disk, pool, np.frombuffer(memory.view(), np.uint8).reshape(-1, PAGE)
        pool.check()
        pool.close()
    memory.close()


def take(pool: PagePool, n: int, seed: int) -> np.ndarray:
    """Take `n` pages in an order that has nothing to do with where they are."""
    ids = np.empty(n, np.uint32)
    assert pool.alloc_bulk(ids) == n
    random.Random(seed).shuffle(ids)
    return ids


def refused(call: Callable[[], object], error: type[Exception]) -> str:
    """Return the text of the error that `call` raises."""
    try:
        call()
    except error as refusal:
        print(refusal)
        return str(refusal)
    raise AssertionError("not refused")


def test_identify() -> None:
    with disk_and_pool() as (disk, _, _):
        print(disk.model, disk.size_bytes, disk.block_bytes, disk.max_transfer_pages)
        assert "QEMU" in disk.model
        assert disk.size_bytes == 64 << 20
        assert disk.max_transfer_pages >= 64


@cases("1", "2", "3", "8", "64", "128")
def test_scattered_pages_there_and_back(n: str) -> None:
    """All three forms of a PRP pair: one page, two pages, a list."""
    with disk_and_pool() as (disk, pool, rows):
        count = min(int(n), disk.max_transfer_pages)
        source, destination = take(pool, count, 1), take(pool, count, 2)
        for page in source:
            rows[page] = np.frombuffer(os.urandom(PAGE), np.uint8)
        rows[destination] = 0
        disk.write(pool, source, 7 * PAGE)
        disk.read(pool, destination, 7 * PAGE)
        assert (rows[source] == rows[destination]).all()
        assert np.any(np.diff(source.astype(np.int64)) != 1) or count < 3
        pool.put_bulk(source)
        pool.put_bulk(destination)


def test_many_commands_under_way() -> None:
    with disk_and_pool() as (disk, pool, rows):
        ids = take(pool, 31 * 4, 3)
        rows[ids] = np.frombuffer(os.urandom(31 * 4 * PAGE), np.uint8).reshape(-1, PAGE)
        before = rows[ids].copy()
        for opcode in (WRITE, READ):
            groups = ids.reshape(31, 4)
            commands = [disk.submit(opcode, pool, group, 4 * PAGE * i) for i, group in enumerate(groups)]
            for command in reversed(commands):
                disk.wait(command)
            if opcode == WRITE:
                rows[ids] = 0
        assert (rows[ids] == before).all()
        started = time.monotonic()
        for i in range(200):
            disk.read(pool, ids[:8], i * PAGE)
        print(f"{(time.monotonic() - started) / 200 * 1e3:.2f} ms for a read of 8 pages")
        pool.put_bulk(ids)


def test_strict() -> None:
    with disk_and_pool(strict=True) as (disk, pool, rows):
        source, destination = take(pool, 8, 4), take(pool, 8, 5)
        rows[source] = np.arange(8, dtype=np.uint8)[:, None]
        disk.write(pool, source, 0)
        disk.read(pool, destination, 0)
        assert (rows[source] == rows[destination]).all()
        assert set(disk.device.mappings.values()) == {PAGE}
        pool.put_bulk(source)
        pool.put_bulk(destination)


def test_refused_after_unmap() -> None:
    """A read into a page that is not mapped any more: the page is intact, whatever status the disk gives."""
    with disk_and_pool() as (disk, pool, rows):
        ids = take(pool, 4, 6)
        rows[ids] = 0x11
        disk.write(pool, ids, 0)
        addrs = np.empty(4, np.uint64)
        pool.dma_addrs(ids, addrs)
        rows[ids] = 0x22
        base = int(addrs.min()) & ~(SLAB - 1)
        disk.device.unmap(base, SLAB, DmaDir.BIDIRECTIONAL)
        before = host.iommu_faults()
        try:
            disk.read(pool, ids, 0)
            print("the disk says: success")
        except DeviceError as error:
            print(error)
            assert error.errno in (errno.EIO, errno.ETIMEDOUT)  # noqa: PT017
        faults = host.iommu_faults() - before
        print(f"{faults} refused accesses")
        assert (rows[ids] == 0x22).all()
        assert faults > 0
        pool.put_bulk(ids)


def test_what_it_refuses() -> None:
    with disk_and_pool() as (disk, pool, _):
        ids = take(pool, 2, 7)
        assert "are not pages of" in refused(lambda: disk.read(pool, ids, 100), ValueError)
        assert "are not pages of" in refused(lambda: disk.read(pool, ids, disk.size_bytes - PAGE), ValueError)
        assert "one command moves" in refused(lambda: disk.read(pool, ids[:0], 0), ValueError)
        command = disk._io.take_slot(1)
        disk._io.submit(command, 0x7F, 1, (0, 0), (0,))  # no such command
        assert "code 0x01" in refused(lambda: disk.wait(command), DeviceError)
        disk.write(pool, ids, 0)  # and it goes on
        pool.put_bulk(ids)
    assert "closed" in refused(lambda: disk.read(pool, ids, 0), DeviceError)


def test_not_a_disk() -> None:
    assert "010802" in refused(lambda: NvmeDisk(device("edu").bdf, bind=True), NotSupportedError)

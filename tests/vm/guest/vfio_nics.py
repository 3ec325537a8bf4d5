# SPDX-License-Identifier: MIT
"""The NIC drivers against emulated NICs: frames from the host, echoed from the pages that they came in."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from pagepool import DmaDir, PageAllocator, PagePool, PPFlag
from pagepool.dma import VfioDevice
from pagepool.drivers.loopback import rss_hash
from pagepool.drivers.vfio import VfioQueue, find_nics, open_queues
from pagepool.errors import DeviceError
from pagepool.memory import huge_pages
from pagepool.xdp import XdpBatch

from .support import host
from .support.frames import make_frame
from .support.plan import device
from .support.suite import cases, only_on

ALL = ("igb0", "igb1", "e1000e", "virtio1")
SLAB = 2 << 20


def open_nic(name: str, queues: int = 1, **options: Any) -> list[VfioQueue]:
    """Open a NIC of the machine, with huge pages for its memory."""
    if huge_pages.nr_hugepages() < 16:
        with open("/proc/sys/vm/nr_hugepages", "w") as knob:
            knob.write("32")
    return open_queues(device(name).bdf, queues, bind=True, **options)


def echo(batch: XdpBatch) -> None:
    """Exchange the Ethernet stations in place and send the frame from the same page."""
    headers = batch.headers(12)
    destination, source = headers[:, 0:6], headers[:, 6:12]
    headers[:, 0:6], headers[:, 6:12] = source, destination
    batch.tx()


def echo_until(call: host.Call, queues: Iterable[VfioQueue]) -> dict[str, Any]:
    """Echo on all queues until the host has what it wants; the result must be perfect."""
    queues = list(queues)
    while not call.done():
        for queue in queues:
            batch = queue.poll()
            if batch is not None:
                with batch:
                    echo(batch)
    return call.result()


def close_all(queues: Iterable[VfioQueue]) -> None:
    """Close; every page must be home, by the pool's own books."""
    for queue in queues:
        pool = queue.pool
        queue.close()
        pool.check()
        assert pool.lent == 0, pool.holders()


def is_perfect(result: dict[str, Any], count: int) -> bool:
    """Whether every frame came back, byte for byte, and nothing else."""
    return (result["echoed"], result["wrong"], result["lost"]) == (count, 0, 0)


@cases("igb0", "igb1", "e1000e", "virtio1")
def test_echo(name: str) -> None:
    queues = open_nic(name)
    assert queues[0].nic.mac.hex(":") == device(name).mac
    assert queues[0].nic.is_link_up
    started = time.monotonic()
    result = echo_until(host.inject(name, 1000, window=32), queues)
    print(f"{name}: {result}, {1000 / (time.monotonic() - started):.0f} round trips/s in the guest")
    stats = queues[0].stats()
    print(stats)
    close_all(queues)
    assert is_perfect(result, 1000), result
    assert (stats.rx_frames, stats.tx_frames, stats.rx_errors) == (1000, 1000, 0)


@cases("2", "4")
def test_igb_spreads_flows(n: str) -> None:
    """Each queue has a pool of its own, and gets the frames that the hash says."""
    queues, count = open_nic("igb1", int(n)), 600
    result = echo_until(host.inject("igb1", count, window=32, seed=int(n)), queues)
    frames = [make_frame(i, seed=int(n)) for i in range(count)]
    rows = np.array([np.frombuffer(frame[:60], np.uint8) for frame in frames])
    hashes = rss_hash(rows, np.array([len(frame) for frame in frames], np.uint32))
    wanted = np.bincount((hashes & 127) % int(n), minlength=int(n)).tolist()
    got = [queue.stats().rx_frames for queue in queues]
    print(f"{result}, per queue {got}")
    assert len({id(queue.pool) for queue in queues}) == int(n)
    assert len({queue.pool.id for queue in queues}) == int(n)
    close_all(queues)
    assert is_perfect(result, count), result
    assert got == wanted
    assert min(got) > 0


@cases("igb0", "e1000e", "virtio1")
def test_sleeps_until_an_interrupt(name: str) -> None:
    """Frames are sent only when the thread that polls is asleep: nothing but the NIC can wake it."""
    (queue,) = open_nic(name)
    stats = queue.napi.stats
    thread = threading.Thread(target=queue.run, args=(lambda batch: batch.drop(),))
    thread.start()
    for turn in range(10):
        sleeps, deadline = stats.sleeps, time.monotonic() + 60
        while not _is_asleep(thread, queue) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stats.sleeps >= max(sleeps, 1)
        host.send(name, 3, first=3 * turn).result()
        while queue.stats().rx_frames < 3 * (turn + 1) and time.monotonic() < deadline:
            time.sleep(0.01)
    queue.napi.stop()
    thread.join()
    figures = queue.stats()
    print(figures.napi)
    close_all([queue])
    assert figures.rx_frames == 30
    assert stats.fd_events >= 10
    assert stats.timeouts == 0


def _is_asleep(thread: threading.Thread, queue: VfioQueue) -> bool:
    """Whether the thread waits in epoll: the kernel says that it sleeps, and NAPI that it has nothing to do."""
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        state = stat.read().rpartition(")")[2].split()[0]
    return state == "S" and not queue.napi.is_scheduled and queue.napi.stats.sleeps > 0


@cases("igb0", "virtio1")
def test_polled_without_interrupts(name: str) -> None:
    (queue,) = open_nic(name, interrupts=False, memory="anonymous")
    call = host.inject(name, 100)
    queue.run(echo, until=call.done, seconds=120)
    close_all([queue])
    assert is_perfect(call.result(), 100), call.result()
    assert queue.napi.stats.sleeps == 0


@cases("igb1", "virtio1")
def test_small_rings_wrap(name: str) -> None:
    queues = open_nic(name, ring_size=64)
    result = echo_until(host.inject(name, 500, window=12), queues)
    close_all(queues)
    assert is_perfect(result, 500), result


@cases("igb0", "e1000e", "virtio1")
def test_strict(name: str) -> None:
    """Every page is mapped on its own: one mapping for each page that the pools hold."""
    queues = open_nic(name, strict=True)
    dev = queues[0].nic.device
    assert set(dev.mappings.values()) == {4096}
    result = echo_until(host.inject(name, 200), queues)
    held = queues[0].pool.inflight + queues[0].nic.rings.pool.inflight
    assert len(dev.mappings) == held
    close_all(queues)
    assert is_perfect(result, 200), result


@cases("igb0", "e1000e", "virtio1")
def test_refused_after_unmap(name: str) -> None:
    """The pages that are posted lose their mapping: frames still come, and not a byte of them arrives."""
    dev = VfioDevice(device(name).bdf, bind=True)
    memory = PageAllocator(8 * SLAB, commit=True)
    view = np.frombuffer(memory.view(), np.uint8)
    pool = PagePool(flags=PPFlag.DMA_MAP, dev=dev, memory=memory, offset=256)
    (queue,) = open_queues(dev.bdf, device=dev, pools=[pool])
    result = echo_until(host.inject(name, 50), [queue])
    assert is_perfect(result, 50), result
    dev.unmap(_slab_iova(pool), SLAB, DmaDir.BIDIRECTIONAL)
    view[:SLAB] = 0x5A
    before = host.iommu_faults()
    host.send(name, 40).result()
    deadline = time.monotonic() + 20
    while host.iommu_faults() == before and time.monotonic() < deadline:
        time.sleep(0.1)
    faults = host.iommu_faults() - before
    changed = int(np.count_nonzero(view[:SLAB] != 0x5A))
    print(f"{faults} refused accesses, {changed} bytes changed")
    queue.close()
    pool.check()
    pool.close()
    assert changed == 0
    assert faults > 0
    del view
    memory.close()


def _slab_iova(pool: PagePool) -> int:
    """Return where the one slab of a pool's pages is mapped, found through one of them."""
    page = pool.alloc_pages()
    iova = int(page.dma_addr - (page.vaddr - pool.arena.base_vaddr) % SLAB)
    page.put()
    return iova


@only_on("newest", "oldest")
def test_redirect_between_nics_that_share_memory() -> None:
    """In by igb0, out by igb1, without a copy: one I/O address space for both, and the page goes home to its pool."""
    first = VfioDevice(device("igb0").bdf, bind=True)
    second = VfioDevice(device("igb1").bdf, bind=True, share=first)
    (incoming,) = open_queues(first.bdf, device=first)
    (outgoing,) = open_queues(second.bdf, device=second)
    call = host.expect("igb1", 60, seed=9)
    host.send("igb0", 60, seed=9)
    while not call.done():
        batch = incoming.poll()
        if batch is not None:
            with batch:
                headers = batch.headers(12)
                headers[:, 0:6] = headers[:, 6:12]  # to the host's station
                batch.redirect(outgoing)
        outgoing.poll()
    print(call.result(), incoming.stats().xdp)
    assert call.result() == {"exact": 60, "wrong": 0, "lost": 0}
    assert incoming.stats().xdp["redirect"] >= 60
    outgoing.close()  # gives igb0's pages back
    incoming.close()
    incoming.pool.check()
    assert incoming.pool.lent == 0


def test_verdicts() -> None:
    """Keep, pass, drop: kept pages outlive the NIC, passed frames are copies in the sink."""
    stack: list[bytes] = []
    (queue,) = open_nic("e1000e", stack=stack)
    frames = [make_frame(i, seed=3, destination=queue.nic.mac) for i in range(30)]
    host.send("e1000e", 30, seed=3)
    kept, seen, deadline = [], 0, time.monotonic() + 60
    while seen < 30 and time.monotonic() < deadline:
        batch = queue.poll()
        if batch is None:
            continue
        with batch:
            which = (np.arange(len(batch)) + seen) % 3
            seen += len(batch)
            kept += batch.keep(which == 0)
            batch.pass_(which == 1)
            batch.drop(which == 2)
    pool, figures = queue.pool, queue.stats().xdp
    queue.close()
    assert [bytes(page) for page in kept] == frames[0::3]
    assert stack == frames[1::3]
    assert (figures["keep"], figures["pass" if "pass" in figures else "passed"], figures["drop"]) == (10, 10, 10)
    for page in kept:
        page.put()
    pool.check()
    assert pool.lent == 0


def test_queues_close_one_by_one() -> None:
    """A queue that closes stops its own DMA; the others go on; the last gives the NIC back."""
    queues = open_nic("igb0", 4)
    dev = queues[0].nic.device
    echo_until(host.inject("igb0", 100), queues)
    queues.pop(2).close()
    queues.pop(0).close()
    assert not dev.closed
    call = host.send("igb0", 100, seed=5)
    while not call.done():
        for queue in queues:
            queue.poll()
    assert all(queue.stats().rx_errors == 0 for queue in queues)
    close_all(queues)
    assert dev.closed
    again = open_nic("igb0")
    result = echo_until(host.inject("igb0", 100, seed=6), again)
    close_all(again)
    assert is_perfect(result, 100), result


def test_numa() -> None:
    """The pages of a NIC are on its node."""
    for name in ("igb0", "igb1"):
        queues = open_nic(name, memory="anonymous")
        result = echo_until(host.inject(name, 20), queues)
        page = queues[0].pool.alloc_pages()
        nid = page.nid
        page.put()
        close_all(queues)
        assert is_perfect(result, 20), result
        assert nid == device(name).nid


def test_discovery() -> None:
    found = {pci.bdf: driver.MODEL for pci, driver in find_nics()}
    assert {found[device(name).bdf].split()[0] for name in ALL} == {"igb", "e1000e", "virtio-net"}


def test_too_many_queues() -> None:
    for name, queues in (("e1000e", 2), ("igb0", 17), ("virtio1", 0)):
        try:
            open_nic(name, queues)
        except ValueError as error:
            print(error)
        else:
            raise AssertionError("not refused")
    try:
        open_nic("igb0", 16)
    except DeviceError as error:
        print(error)  # more queues than interrupt vectors
        assert (error.errno, "without interrupts" in error.hint) == (errno.ENOSPC, True)  # noqa: PT017
    queues = open_nic("igb0", 16, interrupts=False)
    result = echo_until(host.inject("igb0", 200), queues)
    close_all(queues)
    assert is_perfect(result, 200), result

# SPDX-License-Identifier: MIT
"""A process of the host reads pages that a NIC of the guest has filled: a pool over memory that both have (ivshmem).

The memory is a BAR of a PCI device here and a file without a name there. A pool is made over it like over any other
memory, VFIO maps it for the igb, and the igb's DMA goes through the IOMMU straight into the host's file: from the wire
to the reader nobody copies a byte.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pagepool import DmaDir, PagePool, PPFlag
from pagepool._core.arena import Arena
from pagepool.dma import VfioDevice
from pagepool.drivers.vfio import VfioQueue, open_queues

from .support import host
from .support.frames import make_frame
from .support.pci import PciDevice
from .support.plan import device

BOOTS = ("newest", "oldest")
NIC = "igb1"
SLAB_BYTES, SHARED_BYTES, HEADROOM = 2 << 20, 4 << 20, 256
FRAMES, SEED, MAX_BYTES = 48, 11, 1000  # an answer of the host holds 1024 bytes
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, PROT_READ_WRITE = 1, 2, 0x10, 0x20, 3

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class SharedMemory:
    """The shared memory as pages: what a pool wants of an allocator is its arena.

    Page ``id`` is at byte ``id << 12`` of the host's file.
    """

    def __init__(self) -> None:
        pci = PciDevice(device("ivshmem").bdf)
        pci.enable(bus_master=False)
        space = libc.mmap(None, SHARED_BYTES + SLAB_BYTES, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        vaddr = (space + SLAB_BYTES - 1) // SLAB_BYTES * SLAB_BYTES
        fd = os.open(pci.folder / "resource2", os.O_RDWR)
        assert os.fstat(fd).st_size == SHARED_BYTES
        assert libc.mmap(vaddr, SHARED_BYTES, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == vaddr
        os.close(fd)
        self.arena = Arena(vaddr, SHARED_BYTES // SLAB_BYTES)
        for slab in range(SHARED_BYTES // SLAB_BYTES):
            self.arena.add_slab(slab, 0)


@contextmanager
def nic_over_shared_memory() -> Iterator[tuple[PagePool, VfioQueue]]:
    """Open the NIC with a pool over the shared memory; its rings are in ordinary memory."""
    with (
        VfioDevice(device(NIC).bdf, bind=True) as vfio,
        PagePool(
            flags=PPFlag.DMA_MAP,
            dev=vfio,
            dma_dir=DmaDir.BIDIRECTIONAL,
            offset=HEADROOM,
            max_len=2048,
            memory=SharedMemory(),
        ) as pool,
    ):
        (queue,) = open_queues(device(NIC).bdf, device=vfio, pools=[pool], memory="anonymous", interrupts=False)
        with queue:
            yield pool, queue


def test_the_host_reads_pages_that_the_nic_filled() -> None:
    kept = []
    with nic_over_shared_memory() as (pool, queue):
        host.send(NIC, FRAMES, seed=SEED, max_bytes=MAX_BYTES).result()
        while len(kept) < FRAMES:
            batch = queue.poll()
            if batch is not None:
                with batch:
                    lengths = batch.lengths.tolist()
                    kept += list(zip(batch.keep(), lengths, strict=True))
        station = bytes.fromhex(device(NIC).mac.replace(":", ""))
        for index, (page, length) in enumerate(kept):
            offset = page.vaddr - pool.arena.base_vaddr
            frame = make_frame(index, seed=SEED, destination=station, max_bytes=MAX_BYTES)
            assert offset % 4096 in (0, HEADROOM), offset
            assert host.read_shared((page.id << 12) + HEADROOM, length) == frame, f"frame {index} in page {page.id}"
        print(f"{FRAMES} frames read by the host in {len({page.id for page, _ in kept})} pages that the NIC filled")
        for page, _ in kept:
            page.put()
        kept.clear()
        pool.check()


def test_what_the_host_writes_goes_out_from_its_page() -> None:
    with nic_over_shared_memory() as (pool, queue):
        call = host.expect(NIC, 1, seed=SEED, max_bytes=MAX_BYTES)
        page = pool.alloc_pages()
        frame = make_frame(0, seed=SEED, destination=bytes.fromhex("0200000000fe"), max_bytes=MAX_BYTES)
        host.write_shared((page.id << 12) + HEADROOM, frame)
        ids, lengths = np.array([page.id], np.uint32), np.array([len(frame)], np.uint32)
        offsets = np.array([HEADROOM], np.uint32)
        assert queue.xdp_xmit(pool, ids, lengths, offsets) == 1
        assert call.result() == {"exact": 1, "wrong": 0, "lost": 0}

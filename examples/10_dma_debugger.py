# SPDX-License-Identifier: MIT
"""Find the DMA mistakes of a driver: a software IOMMU judges every access, a bounce buffer shows the stale data."""

from pagepool import DmaDir, PagePool, PPFlag
from pagepool.dma import Bounce, DmaDevice, HostDevice, SoftIommu, bus_of


def pool_for(device: DmaDevice) -> PagePool:
    """Make a pool whose pages a device may read and write; the driver below is the same for each device."""
    flags = PPFlag.DMA_MAP | PPFlag.DMA_SYNC_DEV
    return PagePool(flags=flags, dev=device, dma_dir=DmaDir.BIDIRECTIONAL, max_len=4096)


def echo(pool: PagePool, device: DmaDevice, *, careful: bool) -> tuple[bytes, bytes]:
    """Receive a frame, answer it from the page it came in; return what the CPU read and what the device sent."""
    nic = bus_of(device)  # the device's side: it reads and writes by dma_addr
    assert nic is not None
    page = pool.alloc_pages()
    nic.dma_write(page.dma_addr, b"ping")
    if careful:
        pool.dma_sync_for_cpu(page, 0, 4)
    seen = bytes(page[:4])
    page[:4] = b"pong"
    if careful:
        device.sync_for_device(page.dma_addr, 4, pool.dma_dir)
    sent = nic.dma_read(page.dma_addr, 4)
    dma_addr = page.dma_addr
    pool.release_page(page)  # it leaves the pool: strict mapping takes it from the device at once
    if not careful:
        nic.dma_write(dma_addr, b"late")
    return seen, sent


with SoftIommu(strict=True) as iommu, pool_for(iommu) as pool:
    print("careful:", echo(pool, iommu, careful=True))
    iommu.check()  # no findings

iommu = SoftIommu("careless", strict=True, collect=True)
with iommu, pool_for(iommu) as pool:
    print("careless, on a coherent machine it seems to work:", echo(pool, iommu, careful=False))
print(iommu.report())

bounce = Bounce(HostDevice())
with pool_for(bounce) as pool:
    print("careless, behind a bounce buffer, both sides get what was there before:", echo(pool, bounce, careful=False))

# SPDX-License-Identifier: MIT
"""An NVMe disk: reads and writes straight from and to pool pages, through PRP lists.

The proof that a pool is not about NICs: the same pages, the same mappings, another device. One chapter: the
controller is reset and enabled, says who it is, gets one pair of I/O queues, and takes commands. Polled, one
namespace, no interrupts, no metadata. Invariant: pages of a command that does not end are not touched after
its error: the controller is off by then.

Sections are those of the "NVM Express Base Specification", revision 1.4.
"""

from __future__ import annotations

import errno
import time
from typing import Any, Self

import numpy as np

from pagepool.dma.vfio import VfioDevice
from pagepool.drivers.vfio.nvme_queue import NvmeQueue
from pagepool.drivers.vfio.ring_memory import RingMemory
from pagepool.errors import DeviceError, NotSupportedError
from pagepool.memory import MemoryKind, PageAllocator
from pagepool.xdp.driver import U8Array, U64Array

__all__ = ["NvmeDisk"]

CLASS_NVME = 0x010802
# 3.1 Controller registers.
CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
CC_ENABLE, CC_ENTRY_SIZES = 1 << 0, 6 << 16 | 4 << 20  # submissions of 64 bytes, completions of 16
CSTS_READY, CSTS_FATAL = 1 << 0, 1 << 1
# 5 Admin commands, and the two of the NVM command set (6) that move data.
CREATE_SUBMISSION_QUEUE, CREATE_COMPLETION_QUEUE, IDENTIFY = 0x01, 0x05, 0x06
WRITE, READ = 0x01, 0x02
IDENTIFY_NAMESPACE, IDENTIFY_CONTROLLER = 0, 1
CONTIGUOUS = 1
DEPTH = 32
PAGE, PRPS_PER_LIST = 4096, 512


class NvmeDisk:
    """Open an NVMe disk.

    Parameters
    ----------
    device : VfioDevice or str
        Open, or its place on the PCI bus. It is closed with the disk.
    namespace : int
        Which, from 1.
    bind : bool
        If `device` is a place: take it from the kernel's driver.

    Raises
    ------
    DeviceError
        What VFIO or the controller refused.

    Attributes
    ----------
    model : str
    block_bytes, size_bytes : int
        Of the namespace.
    max_transfer_pages : int
        Pages of 4096 bytes that one command moves at most.

    Notes
    -----
    Context: one thread.
    """

    def __init__(self, device: VfioDevice | str, *, namespace: int = 1, bind: bool = False) -> None:
        self.device = VfioDevice(device, bind=bind) if isinstance(device, str) else device
        self.namespace = namespace
        self.name = f"{self.device.bdf} namespace {namespace}"
        self._closed = False
        self._lists: list[tuple[U8Array, int]] = []
        self._memory = PageAllocator(1 << 30, MemoryKind.HUGETLB, self.device.nid)
        self._rings = RingMemory(self.device, self._memory, self.device.nid)
        try:
            self._enable()
            self._identify()
            self._make_io_queue()
        except BaseException:
            self.close()
            raise

    def _enable(self) -> None:
        """7.6.1 Initialization: disable, give it the admin queues, enable."""
        function = self.device.function
        if self.device.pci.class_code != CLASS_NVME:
            raise NotSupportedError(f"NVMe at {self.device.bdf}", f"PCI class {CLASS_NVME:06x}")
        function.enable_bus_master()
        self.registers = r = function.bar(0)
        capabilities = r.read64(CAP)
        self._seconds = max((capabilities >> 24 & 0xFF) / 2, 1.0)
        self._stride = 4 << (capabilities >> 32 & 0xF)
        depth = min(DEPTH, (capabilities & 0xFFFF) + 1)
        if capabilities >> 48 & 0xF:
            raise NotSupportedError(f"NVMe at {self.device.bdf}", "a controller with memory pages of 4 KiB")
        r.write32(CC, 0)
        self._wait_ready(0)
        self._admin = admin = self._queue(0, depth)
        r.write32(AQA, (depth - 1) << 16 | (depth - 1))
        r.write64(ASQ, admin.submission_dma_addr)
        r.write64(ACQ, admin.completion_dma_addr)
        r.write32(CC, CC_ENABLE | CC_ENTRY_SIZES)
        self._wait_ready(CSTS_READY)

    def _identify(self) -> None:
        """5.15 Identify: what the controller and the namespace are."""
        view, dma_addr = self._rings.page()
        self._admin.run(IDENTIFY, 0, (dma_addr, 0), (IDENTIFY_CONTROLLER,), self._seconds)
        self.model = view[24:64].tobytes().decode("ascii", "replace").strip()
        mdts = int(view[77])  # a power of two of pages; 0 is no limit
        # One page directly and one list: longer transfers would need lists that link to lists.
        self.max_transfer_pages = min(1 << mdts if mdts else PRPS_PER_LIST, PRPS_PER_LIST)
        self._admin.run(IDENTIFY, self.namespace, (dma_addr, 0), (IDENTIFY_NAMESPACE,), self._seconds)
        blocks = int.from_bytes(view[0:8].tobytes(), "little")
        lba_format = int(view[26]) & 0xF
        self.block_bytes = 1 << int(view[128 + 4 * lba_format + 2])
        if not blocks or self.block_bytes > PAGE:
            raise NotSupportedError(self.name, "an active namespace with blocks of 4096 bytes at most")
        self.size_bytes = blocks * self.block_bytes

    def _make_io_queue(self) -> None:
        """5.3, 5.4: the completion queue first, since the submission queue names it."""
        self._io = io = self._queue(1, self._admin.depth)
        size_and_id = (io.depth - 1) << 16 | 1
        admin, seconds = self._admin, self._seconds
        admin.run(CREATE_COMPLETION_QUEUE, 0, (io.completion_dma_addr, 0), (size_and_id, CONTIGUOUS), seconds)
        admin.run(CREATE_SUBMISSION_QUEUE, 0, (io.submission_dma_addr, 0), (size_and_id, 1 << 16 | CONTIGUOUS), seconds)
        # A list for every command that can be under way; a slot's list is free when its command has ended.
        self._lists = [self._rings.page() for _ in range(io.depth)]

    def _queue(self, number: int, depth: int) -> NvmeQueue:
        at = DOORBELLS + 2 * number * self._stride
        return NvmeQueue(self._rings, self.registers, self.name, number, depth, at, at + self._stride)

    # Reading and writing.

    def read(self, pool: Any, ids: Any, offset_bytes: int) -> None:
        """Read ``4096 * len(ids)`` bytes of the disk into pages, in the order given.

        Parameters
        ----------
        pool : PagePool
            Of pages of 4096 bytes, mapped for this device.
        ids : (n,) uint32
            Pages that the caller holds, anywhere and in any order.
        offset_bytes : int
            Where on the disk; a multiple of 4096.

        Raises
        ------
        DeviceError
            ``EIO``: the controller said no; ``ETIMEDOUT``: it said nothing, and is off now.
        ValueError
            The range is not on the disk, or `ids` are too many for one command.

        Notes
        -----
        A status of success says nothing of whether the IOMMU let the data through: with pages that are mapped,
        as a pool's are, it does.
        """
        self._transfer(READ, pool, ids, offset_bytes)

    def write(self, pool: Any, ids: Any, offset_bytes: int) -> None:
        """Write pages to the disk; as `read`."""
        self._transfer(WRITE, pool, ids, offset_bytes)

    def submit(self, opcode: int, pool: Any, ids: Any, offset_bytes: int) -> int:
        """Start a command (`READ` or `WRITE`) and return its number, for `wait`.

        The pages must stay held until it has ended.
        """
        if self._closed:
            raise DeviceError(errno.EBADF, "use", self.name, "it is closed")
        n = len(ids)
        if not 1 <= n <= self.max_transfer_pages:
            raise ValueError(f"{n} pages: one command moves 1 to {self.max_transfer_pages}")
        if offset_bytes < 0 or offset_bytes % PAGE or offset_bytes + n * PAGE > self.size_bytes:
            raise ValueError(f"bytes {offset_bytes} to {offset_bytes + n * PAGE} are not pages of {self.name}")
        if pool.params.order:
            raise ValueError(f"a pool of order {pool.params.order}: PRPs are pages of 4096 bytes")
        dma_addrs: U64Array = np.empty(n, np.uint64)
        pool.dma_addrs(np.asarray(ids, np.uint32), dma_addrs)
        block, count = offset_bytes // self.block_bytes, n * PAGE // self.block_bytes
        command = self._io.take_slot(self._seconds)
        words = (block & 0xFFFF_FFFF, block >> 32, count - 1)
        self._io.submit(command, opcode, self.namespace, self._prps(command, dma_addrs), words)
        return command

    def wait(self, command: int) -> None:
        """Wait until a command has ended; raises as `read` does."""
        try:
            self._io.wait(command, self._seconds)
        except DeviceError as error:
            if error.errno == errno.ETIMEDOUT:
                self._off()
            raise

    def _transfer(self, opcode: int, pool: Any, ids: Any, offset_bytes: int) -> None:
        self.wait(self.submit(opcode, pool, ids, offset_bytes))

    def _prps(self, command: int, dma_addrs: U64Array) -> tuple[int, int]:
        """4.3: the first page, then nothing, the second page, or a list of all that follow."""
        first = int(dma_addrs[0])
        if len(dma_addrs) == 1:
            return first, 0
        if len(dma_addrs) == 2:
            return first, int(dma_addrs[1])
        view, list_dma_addr = self._lists[command]
        view.view("<u8")[: len(dma_addrs) - 1] = dma_addrs[1:]
        return first, list_dma_addr

    # The end.

    def close(self) -> None:
        """Turn the controller off and close the device. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._off()
        self._lists = []
        self._rings.close()
        self.device.close()
        self._memory.close()

    def _off(self) -> None:
        """7.3.2, controller reset: disable it; bus mastering goes first, so that its DMA ends whatever it does."""
        function = self.device.function
        if function.fd >= 0:
            function.disable_bus_master()
            if hasattr(self, "registers"):
                self.registers.write32(CC, 0)
            if function.can_reset:
                function.reset()

    def _wait_ready(self, wanted: int) -> None:
        deadline = time.monotonic() + self._seconds
        while (status := self.registers.read32(CSTS)) & CSTS_READY != wanted:
            if status & CSTS_FATAL or time.monotonic() > deadline:
                what = "the controller reports a fatal error" if status & CSTS_FATAL else "it does not answer"
                raise DeviceError(errno.ETIMEDOUT, "enable" if wanted else "disable", self.name, what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

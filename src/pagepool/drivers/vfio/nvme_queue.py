# SPDX-License-Identifier: MIT
"""A pair of NVMe queues: commands go in on one ring, completions come back on the other, in any order.

What a command means is its caller's business. Invariant: a command's number is in use from `take_slot` to the
completion that names it, and a completion that names another is not believed.

Sections are those of the "NVM Express Base Specification", revision 1.4.
"""

from __future__ import annotations

import errno
import time

import numpy as np

from pagepool.dma.vfio import Registers
from pagepool.drivers.vfio.ring_memory import RingMemory, check_ring_size
from pagepool.errors import DeviceError
from pagepool.xdp.driver import U64Array

__all__ = ["NvmeQueue"]

#: 4.2 Submission queue entry.
COMMAND = np.dtype(
    [
        ("opcode", "u1"),
        ("flags", "u1"),
        ("number", "<u2"),
        ("namespace", "<u4"),
        ("reserved", "<u8"),
        ("metadata", "<u8"),
        ("prp1", "<u8"),
        ("prp2", "<u8"),
        ("words", "<u4", (6,)),
    ]
)
# 4.6 Completion queue entry, its second half as one word of 64 bits: queue head, queue, number, phase, status.
NUMBER_SHIFT, PHASE_SHIFT, STATUS_SHIFT = 32, 48, 49


class NvmeQueue:
    """A submission queue and its completion queue.

    Parameters
    ----------
    memory : RingMemory
    registers : Registers
    name : str
        For error texts.
    number : int
        0 is the admin queue.
    depth : int
        Entries of each, a power of two to 64.
    tail_at, head_at : int
        Offsets of the two doorbells.

    Attributes
    ----------
    submission_dma_addr, completion_dma_addr : int

    Notes
    -----
    Context: one thread.
    """

    def __init__(
        self, memory: RingMemory, registers: Registers, name: str, number: int, depth: int, tail_at: int, head_at: int
    ) -> None:
        self.depth = check_ring_size(depth, COMMAND.itemsize)
        self.name = f"{name} queue {number}"
        self._registers, self._tail_at, self._head_at = registers, tail_at, head_at
        submissions, self.submission_dma_addr = memory.page()
        completions, self.completion_dma_addr = memory.page()
        self._commands = submissions.view(COMMAND)[:depth]
        self._completions: U64Array = completions.view("<u8").reshape(-1, 2)[:depth]
        self._tail = self._head = 0
        self._phase = 1  # the device writes 1 in the first round, 0 in the second (4.6)
        self._free = list(range(depth - 1))  # one entry stays empty: tail == head means that nothing is there
        self._results: dict[int, int | None] = {}
        self.bad = 0

    def take_slot(self, seconds: float) -> int:
        """Return a command number that is free, waiting for one to end if need be."""
        deadline = time.monotonic() + seconds
        while not self._free:
            self.poll()
            if time.monotonic() > deadline:
                raise DeviceError(errno.EBUSY, "submit to", self.name, f"{self.depth - 1} commands are not waited for")
        number = self._free.pop()
        self._results[number] = None
        return number

    def submit(self, number: int, opcode: int, namespace: int, prps: tuple[int, int], words: tuple[int, ...]) -> None:
        """Write a command and ring the doorbell; `words` are its dwords from the tenth on."""
        entry = np.zeros((), COMMAND)
        entry["opcode"], entry["number"], entry["namespace"] = opcode, number, namespace
        entry["prp1"], entry["prp2"] = prps
        entry["words"][: len(words)] = words
        self._commands[self._tail] = entry
        self._tail = (self._tail + 1) % self.depth
        self._registers.write32(self._tail_at, self._tail)

    def poll(self) -> int:
        """Take in the completions that are there; return how many."""
        seen = 0
        while True:
            word = int(self._completions[self._head, 1])
            if word >> PHASE_SHIFT & 1 != self._phase:
                break
            number = word >> NUMBER_SHIFT & 0xFFFF
            if self._results.get(number, 0) is None:
                self._results[number] = word >> STATUS_SHIFT
            else:
                self.bad += 1  # nobody asked for this one
            seen += 1
            self._head = (self._head + 1) % self.depth
            if self._head == 0:
                self._phase ^= 1
        if seen:
            self._registers.write32(self._head_at, self._head)
        return seen

    def wait(self, number: int, seconds: float) -> None:
        """Wait for one command.

        Raises
        ------
        DeviceError
            ``EIO`` with its status (4.6.1), or ``ETIMEDOUT``.
        """
        deadline = time.monotonic() + seconds
        while (status := self._results[number]) is None:
            if not self.poll() and time.monotonic() > deadline:
                raise DeviceError(errno.ETIMEDOUT, "wait for", self.name, f"no completion in {seconds:.0f} s")
        del self._results[number]
        self._free.append(number)
        if status & 0x7FF:
            what = f"the controller answers status type {status >> 8 & 7:#x}, code {status & 0xFF:#04x}"
            raise DeviceError(errno.EIO, "run a command on", self.name, what)

    def run(self, opcode: int, namespace: int, prps: tuple[int, int], words: tuple[int, ...], seconds: float) -> None:
        """Submit and wait."""
        number = self.take_slot(seconds)
        self.submit(number, opcode, namespace, prps, words)
        self.wait(number, seconds)

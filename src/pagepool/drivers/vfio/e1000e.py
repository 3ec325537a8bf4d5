# SPDX-License-Identifier: MIT
"""Intel 82574 (e1000e): a gigabit NIC with one pair of queues and the descriptors of 1999.

The shortest of the drivers: reset, station, rings, go, one interrupt. No offloads, no jumbo frames. Invariant:
the device reads descriptors only while ``RCTL.EN`` and ``TCTL.EN`` are set, and both are clear until `start`.

Sections are those of Intel's "82574 GbE Controller Family Datasheet", revision 3.4.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np

from pagepool.dma.vfio import Interrupts, IrqKind
from pagepool.drivers.vfio.intel_rings import IntelRxRing, IntelTxRing, RxFormat
from pagepool.drivers.vfio.nic import BUFFER_BYTES, Nic
from pagepool.xdp.driver import U64Array

__all__ = ["E1000eNic"]

# 10.2.2 General registers.
CTRL, CTRL_SET_LINK_UP, CTRL_RESET = 0x0000, 1 << 6, 1 << 26
STATUS, STATUS_LINK_UP = 0x0008, 1 << 1
# 10.2.4 Interrupts.
ICR, ITR, IMS, IMC = 0x00C0, 0x00C4, 0x00D0, 0x00D8
ITR_20_US = 78  # in units of 256 ns
CAUSE_RECEIVED = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 20  # few buffers left, none left, timer, queue 0
# 10.2.5 Receive, 10.2.6 transmit, and of the statistics registers MPC.
RCTL, RCTL_ENABLE, RCTL_ALL, RCTL_BROADCAST, RCTL_STRIP_CRC = 0x0100, 1 << 1, 1 << 3 | 1 << 4, 1 << 15, 1 << 26
TCTL, TCTL_ENABLE_AND_PAD = 0x0400, 1 << 1 | 1 << 3 | 0x0F << 4 | 0x3F << 12
RX_RING, TX_RING = 0x2800, 0x3800
MISSED_PACKETS = 0x4010
RECEIVE_STATION = 0x5400

#: 7.1.3 Legacy receive descriptor: length, checksum, status, errors, VLAN tag. Errors: RXE, SEQ, SE, CE.
RX_FORMAT = RxFormat(status_shift=32, length_shift=0, error_mask=(1 << 7 | 1 << 2 | 1 << 1 | 1 << 0) << 8)
#: 7.2.10 Legacy transmit descriptor: end of packet, insert CRC, report status.
TX_COMMAND = np.uint64((1 << 0 | 1 << 1 | 1 << 3) << 24)


def tx_word(lengths: U64Array) -> U64Array:
    """Return the second word of a transmit descriptor for frames of these lengths."""
    return lengths | TX_COMMAND


class E1000eNic(Nic):
    """An 82574; see `Nic`."""

    PCI_IDS: ClassVar = frozenset({(0x8086, 0x10D3)})
    MODEL: ClassVar = "e1000e (82574)"

    def _open(self) -> None:
        self.registers = r = self.device.function.bar(0)
        # 4.6 Initialization: interrupts are masked before the reset, and again after it.
        r.write32(IMC, 0xFFFF_FFFF)
        r.write32(CTRL, r.read32(CTRL) | CTRL_RESET)
        time.sleep(0.01)
        r.write32(IMC, 0xFFFF_FFFF)
        low, high = r.read32(RECEIVE_STATION), r.read32(RECEIVE_STATION + 4)
        self.mac = (low | (high & 0xFFFF) << 32).to_bytes(6, "little")
        r.write32(CTRL, r.read32(CTRL) | CTRL_SET_LINK_UP)

    def open_queue(self, queue: int, pool: Any, headroom: int) -> tuple[IntelRxRing, IntelTxRing]:
        """See `Nic.open_queue`; 4.6.5 and 4.6.6."""
        r, size = self.registers, self.ring_size
        room = {"headroom": headroom, "buffer_bytes": BUFFER_BYTES}  # 2048 is what RCTL.BSIZE 0 means
        rx = IntelRxRing(self.rings, r, RX_RING, size, pool, RX_FORMAT, **room)
        return rx, IntelTxRing(self.rings, r, TX_RING, size, tx_word)

    def start(self) -> None:
        """See `Nic.start`."""
        r = self.registers
        r.write32(TCTL, TCTL_ENABLE_AND_PAD)
        r.write32(RCTL, RCTL_ENABLE | RCTL_BROADCAST | RCTL_STRIP_CRC | (RCTL_ALL if self.promiscuous else 0))

    def _open_interrupts(self) -> Interrupts:
        """7.4.3: one message for everything; reading ICR clears what has come."""
        interrupts = Interrupts(self.device.function, 1, IrqKind.MSI)
        self.registers.write32(ITR, ITR_20_US)
        return interrupts

    def arm(self, queue: int) -> None:
        """See `Nic.arm`."""
        self.registers.read32(ICR)
        self.registers.write32(IMS, CAUSE_RECEIVED)

    def disarm(self, queue: int) -> None:
        """See `Nic.disarm`."""
        self.registers.write32(IMC, CAUSE_RECEIVED)

    def stop_queue(self, queue: int) -> None:
        """See `Nic.stop_queue`; there is one queue."""
        self.registers.write32(RCTL, 0)
        self.registers.write32(TCTL, 0)

    def read_missed(self, queue: int) -> int:
        """See `Nic.read_missed`; the register clears on read."""
        return self.registers.read32(MISSED_PACKETS)

    @property
    def is_link_up(self) -> bool:
        """See `Nic.is_link_up`."""
        return bool(self.registers.read32(STATUS) & STATUS_LINK_UP)

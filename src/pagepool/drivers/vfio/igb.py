# SPDX-License-Identifier: MIT
"""Intel 82576 (igb): a gigabit NIC with up to 16 pairs of queues, and RSS to spread flows over them.

One chapter, in the order in which the device is brought up: reset, Ethernet station, link, a queue's rings,
spreading, go; then its interrupts, and how a queue is taken out again. No offloads, no jumbo frames, no
virtual functions. Invariant: a queue's descriptors are read by the device only between ``ENABLE`` in its
RXDCTL/TXDCTL and the moment it reads back as clear.

Sections are those of Intel's "82576EB Gigabit Ethernet Controller Datasheet"; registers are called by its names.
"""

from __future__ import annotations

import errno
import time
from typing import Any, ClassVar

import numpy as np

from pagepool.dma.vfio import Interrupts, IrqKind
from pagepool.drivers.loopback.rss import DEFAULT_KEY
from pagepool.drivers.vfio.intel_rings import IntelRxRing, IntelTxRing, RxFormat
from pagepool.drivers.vfio.nic import BUFFER_BYTES, Nic
from pagepool.errors import DeviceError
from pagepool.xdp.driver import U64Array

__all__ = ["IgbNic"]

# General registers.
CTRL, CTRL_SET_LINK_UP, CTRL_RESET = 0x0000, 1 << 6, 1 << 26
STATUS, STATUS_LINK_UP = 0x0008, 1 << 1
MDIC, MDIC_WRITE, MDIC_READY = 0x0020, 1 << 26, 1 << 28
PHY_CONTROL, PHY_PLACE = 0 << 16, 1 << 21
PHY_AUTONEGOTIATE = 0x1340  # PHY control register: enable and restart, full duplex, 1000 Mb/s
# 8.8 Interrupts; 7.3.2.11 and its table: GPIE.
IMC, EIMS, EIMC, EIAC, EIAM = 0x150C, 0x1524, 0x1528, 0x152C, 0x1530
GPIE, GPIE_PER_QUEUE = 0x1514, 1 << 0 | 1 << 4 | 1 << 30 | 1 << 31  # NSICR, Multiple_MSIX, EIAME, PBA_support
IVAR, IVAR_VALID = 0x1700, 0x80
EITR, EITR_20_US = 0x1680, 20 << 2
# 8.10 Receive: RCTL 8.10.1, SRRCTL 8.10.2, RXDCTL 8.10.10. 8.12 Transmit: TXDCTL 8.12.13.
RCTL, RCTL_ENABLE, RCTL_ALL, RCTL_BROADCAST, RCTL_STRIP_CRC = 0x0100, 1 << 1, 1 << 3 | 1 << 4, 1 << 15, 1 << 26
RXCSUM, RXCSUM_PCSD = 0x5000, 1 << 13
RX_RING, TX_RING, RING_STRIDE = 0xC000, 0xE000, 0x40
SRRCTL, SRRCTL_ADVANCED, SRRCTL_DROP = 0x0C, 1 << 25, 1 << 31
DCTL, DCTL_ENABLE = 0x28, 1 << 25
QUEUE_DROPS = 0x30
TCTL, TCTL_ENABLE_AND_PAD = 0x0400, 1 << 1 | 1 << 3 | 0x0F << 4 | 0x40 << 12
RECEIVE_STATION = 0x5400
# 7.1.1.7 Receive side scaling.
MRQC, MRQC_RSS, MRQC_FIELDS = 0x5818, 2, 1 << 16 | 1 << 17 | 1 << 18 | 1 << 20 | 1 << 22 | 1 << 23
RSS_KEY, RSS_TABLE, RSS_TABLE_ENTRIES = 0x5C80, 0x5C00, 128

#: 7.1.5.2 Advanced receive descriptor, written back: status and errors, then length, then VLAN tag. Bit 31: RXE.
RX_FORMAT = RxFormat(status_shift=0, length_shift=32, error_mask=1 << 31)
#: 7.2.2.3 Advanced transmit data descriptor: DTYP data, end of packet, insert CRC, report status, DEXT.
TX_COMMAND = np.uint64(3 << 20 | 1 << 24 | 1 << 25 | 1 << 27 | 1 << 29)
TX_PAYLOAD_SHIFT = np.uint64(32 + 14)


def tx_word(lengths: U64Array) -> U64Array:
    """Return the second word of a transmit descriptor for frames of these lengths."""
    return lengths | TX_COMMAND | lengths << TX_PAYLOAD_SHIFT


class IgbNic(Nic):
    """An 82576; see `Nic`."""

    PCI_IDS: ClassVar = frozenset({(0x8086, 0x10C9)})
    MODEL: ClassVar = "igb (82576)"
    MAX_QUEUES: ClassVar = 16

    def _open(self) -> None:
        self._opened: dict[int, IntelRxRing] = {}
        self.registers = r = self.device.function.bar(0)
        # 4.2.1.6.1: no access for a millisecond after a reset. Interrupts are masked before and after (4.5.4).
        r.write32(EIMC, 0xFFFF_FFFF)
        r.write32(IMC, 0xFFFF_FFFF)
        r.write32(CTRL, r.read32(CTRL) | CTRL_RESET)
        time.sleep(0.01)
        self._wait(CTRL, CTRL_RESET, 0, "reset")
        r.write32(EIMC, 0xFFFF_FFFF)
        r.write32(IMC, 0xFFFF_FFFF)
        # RAL, RAH: the reset loads the station from the NVM into the first receive filter.
        low, high = r.read32(RECEIVE_STATION), r.read32(RECEIVE_STATION + 4)
        self.mac = (low | (high & 0xFFFF) << 32).to_bytes(6, "little")
        # 4.5.7: set link up, then have the PHY negotiate anew; it was told nothing since the reset.
        r.write32(CTRL, r.read32(CTRL) | CTRL_SET_LINK_UP)
        r.write32(MDIC, PHY_AUTONEGOTIATE | PHY_CONTROL | PHY_PLACE | MDIC_WRITE)
        self._wait(MDIC, MDIC_READY, MDIC_READY, "write the PHY of")

    def open_queue(self, queue: int, pool: Any, headroom: int) -> tuple[IntelRxRing, IntelTxRing]:
        """See `Nic.open_queue`; 4.5.9 for receive, and the section on transmit after it.

        The queue is on once the device says so, and that may be only when everything is (8.10.10, 8.12.13):
        `start` waits for it.
        """
        r, size = self.registers, self.ring_size
        rx_at, tx_at = RX_RING + RING_STRIDE * queue, TX_RING + RING_STRIDE * queue
        rx = IntelRxRing(self.rings, r, rx_at, size, pool, RX_FORMAT, headroom=headroom, buffer_bytes=BUFFER_BYTES)
        # A queue without buffers drops its frames, and does not hold up those of other queues.
        r.write32(rx_at + SRRCTL, BUFFER_BYTES >> 10 | SRRCTL_ADVANCED | SRRCTL_DROP)
        r.write32(rx_at + DCTL, DCTL_ENABLE)
        tx = IntelTxRing(self.rings, r, tx_at, size, tx_word)
        r.write32(tx_at + DCTL, DCTL_ENABLE)
        self._opened[queue] = rx
        return rx, tx

    def start(self) -> None:
        """See `Nic.start`; 4.5.9: the tail must not move before the queue is on, so it is written now."""
        r = self.registers
        if self.nr_queues > 1:
            self._spread()
        r.write32(TCTL, TCTL_ENABLE_AND_PAD)
        r.write32(RCTL, RCTL_ENABLE | RCTL_BROADCAST | RCTL_STRIP_CRC | (RCTL_ALL if self.promiscuous else 0))
        for queue, rx in self._opened.items():
            for ring, side in ((TX_RING, "transmit"), (RX_RING, "receive")):
                at = ring + RING_STRIDE * queue + DCTL
                self._wait(at, DCTL_ENABLE, DCTL_ENABLE, f"enable {side} queue {queue} of")
            rx.write_tail()

    def _spread(self) -> None:
        """7.1.1.7: a hash over IP places and ports chooses one of 128 entries, the entry names the queue."""
        r = self.registers
        r.write32(RXCSUM, RXCSUM_PCSD)  # the descriptor carries the hash, not a checksum: RSS needs it so
        for i in range(0, len(DEFAULT_KEY), 4):
            r.write32(RSS_KEY + i, int.from_bytes(DEFAULT_KEY[i : i + 4], "little"))
        table = bytes(i % self.nr_queues for i in range(RSS_TABLE_ENTRIES))
        for i in range(0, RSS_TABLE_ENTRIES, 4):
            r.write32(RSS_TABLE + i, int.from_bytes(table[i : i + 4], "little"))
        r.write32(MRQC, MRQC_RSS | MRQC_FIELDS)

    def _open_interrupts(self) -> Interrupts:
        """7.3.1.2: MSI-X, vector `i` for the receive side of queue `i`.

        A vector clears its cause and masks itself when it fires (8.8.5 EIAC, 8.8.6 EIAM), as a NAPI poll wants it.
        """
        interrupts = Interrupts(self.device.function, self.nr_queues, IrqKind.MSIX)
        r, vectors = self.registers, (1 << self.nr_queues) - 1
        r.write32(GPIE, GPIE_PER_QUEUE)
        r.write32(EIAC, vectors)
        r.write32(EIAM, vectors)
        for queue in range(self.nr_queues):
            # 8.8.13: IVAR n has queue n in its low half and queue n + 8 in its high half; receive is the lower byte.
            at, shift = IVAR + 4 * (queue & 7), 16 * (queue >> 3)
            r.write32(at, r.read32(at) & ~(0xFF << shift) | (queue | IVAR_VALID) << shift)
            r.write32(EITR + 4 * queue, EITR_20_US)
        return interrupts

    def arm(self, queue: int) -> None:
        """See `Nic.arm`; a frame that came while the vector was masked raises it now."""
        self.registers.write32(EIMS, 1 << queue)

    def stop_queue(self, queue: int) -> None:
        """See `Nic.stop_queue`; 8.10.10: the queue is off when the bit reads back as clear."""
        self.registers.write32(EIMC, 1 << queue)
        for ring in (TX_RING, RX_RING):
            at = ring + RING_STRIDE * queue + DCTL
            self.registers.write32(at, 0)
            self._wait(at, DCTL_ENABLE, 0, f"stop queue {queue} of")

    def read_missed(self, queue: int) -> int:
        """See `Nic.read_missed`; the register clears on read."""
        return self.registers.read32(RX_RING + RING_STRIDE * queue + QUEUE_DROPS)

    @property
    def is_link_up(self) -> bool:
        """See `Nic.is_link_up`."""
        return bool(self.registers.read32(STATUS) & STATUS_LINK_UP)

    def _wait(self, at: int, mask: int, wanted: int, what: str) -> None:
        """Wait until the bits of `mask` in a register are `wanted`; a second is a thousand times what it takes."""
        deadline = time.monotonic() + 1
        while self.registers.read32(at) & mask != wanted:
            if time.monotonic() > deadline:
                raise DeviceError(errno.ETIMEDOUT, what, self.name, f"the device does not answer (register {at:#x})")

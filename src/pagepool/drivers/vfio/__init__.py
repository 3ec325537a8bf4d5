# SPDX-License-Identifier: MIT
"""NICs and disks driven from user space, in Python: poll-mode drivers over VFIO, on pools and NAPI."""

from pagepool.drivers.vfio.nic import Nic
from pagepool.drivers.vfio.open_queues import NIC_DRIVERS, driver_of, find_nics, open_queues
from pagepool.drivers.vfio.queue import VfioQueue, VfioStats

__all__ = ["NIC_DRIVERS", "Nic", "VfioQueue", "VfioStats", "driver_of", "find_nics", "open_queues"]

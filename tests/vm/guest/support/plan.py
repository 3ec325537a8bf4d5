# SPDX-License-Identifier: MIT
"""What the host told this guest: which boot it is, which tests to run, which devices are where.

Read from a file in the root file system; the host writes it in ``rig/image.py``.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAN_FILE = Path("/rig/plan.json")


@dataclass(frozen=True)
class DevicePlan:
    """One PCI device.

    Its name, place as sysfs writes it, ids, NUMA node (-1: none) and Ethernet address ("": not a NIC).
    """

    name: str
    bdf: str
    vendor: int
    device: int
    nid: int
    mac: str


@dataclass(frozen=True)
class Plan:
    """The host's plan for this boot.

    Parameters
    ----------
    suites : list of (suite, names of its tests)
        In the order to run.
    module_parameters : dict
        By module name.
    missing_modules : dict
        Why modules could not be built on the host, by the folder's name.
    pagepool : bool
        Whether pagepool is installed.
    test_seconds : int
        After so long a test is stopped with a traceback.
    """

    boot: str
    iommu: str
    kernel: str
    python: str
    suites: list[tuple[str, list[str]]]
    devices: list[DevicePlan]
    module_parameters: dict[str, str]
    missing_modules: dict[str, str]
    pagepool: bool
    test_seconds: int

    def to_json(self) -> str:
        """Return the plan as the guest reads it."""
        return json.dumps(self, default=vars, indent=1) + "\n"


@functools.cache
def plan() -> Plan:
    """Return the plan of this boot."""
    fields: dict[str, Any] = json.loads(PLAN_FILE.read_text())
    fields["devices"] = [DevicePlan(**device) for device in fields["devices"]]
    return Plan(**fields)


def device(name: str) -> DevicePlan:
    """Return the device that the host calls ``name``."""
    return next(device for device in plan().devices if device.name == name)

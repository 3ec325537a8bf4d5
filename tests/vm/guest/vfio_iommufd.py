# SPDX-License-Identifier: MIT
"""iommufd and VFIO's character devices: what the other VFIO suites show of containers, shown of these.

No Debian kernel has them, so the suite takes the kernel's VFIO out and puts that of ``modules/iommufd`` in.
"""

from __future__ import annotations

import os

from .support import modules
from .support.kernel_log import kernel_log

BOOTS = ("newest",)
MODULES = ("iommufd",)


def test_the_kernel_takes_the_modules() -> None:
    modules.replace_stock("iommufd")
    assert os.path.exists("/dev/iommu")
    print(*kernel_log()[-10:], sep="\n")


def test_the_kernels_own_come_back() -> None:
    modules.restore_stock("iommufd")
    assert not os.path.exists("/dev/iommu")
    assert os.path.exists("/dev/vfio/vfio")

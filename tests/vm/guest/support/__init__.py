# SPDX-License-Identifier: MIT
"""What the guest's suites stand on: the first process, the runner, the way to the host, frames and PCI."""

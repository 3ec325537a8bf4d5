# SPDX-License-Identifier: MIT
"""Tests in a virtual machine: real VFIO, an IOMMU and NICs, all emulated; see README.md."""

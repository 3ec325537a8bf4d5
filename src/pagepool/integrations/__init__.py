# SPDX-License-Identifier: MIT
"""Frames in other libraries' shapes. Each module stands alone; none is imported by anything below."""

# SPDX-License-Identifier: MIT
"""Programs in C that the pool is measured against, built when they are needed."""

# SPDX-License-Identifier: MIT
"""Suites that run inside the guest: each module here with ``test_*`` functions is one suite."""

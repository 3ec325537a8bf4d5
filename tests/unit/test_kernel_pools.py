# SPDX-License-Identifier: MIT
"""The kernel's own pools: on any machine a list, or a reason why there is none."""

from __future__ import annotations

import json
import subprocess
import sys

from pagepool._core.stats import PoolStats
from pagepool.errors import NotSupportedError
from pagepool.kernel_pools import _COUNTERS, kernel_pools


def test_the_counters_have_the_names_of_ours() -> None:
    ours = PoolStats(**dict.fromkeys(PoolStats.__dataclass_fields__, 0)).kernel()
    assert tuple(ours) == _COUNTERS


def test_pools_are_listed_or_the_reason_is_said() -> None:
    reason, pools = "", []
    try:
        pools = kernel_pools()
    except NotSupportedError as error:
        reason = str(error)
    assert not reason or "needs" in reason
    assert [pool.id for pool in pools] == sorted({pool.id for pool in pools})
    assert all(set(pool.stats) <= set(_COUNTERS) for pool in pools)


def test_the_command_says_something_in_either_case() -> None:
    done = subprocess.run([sys.executable, "-m", "pagepool.cli", "kernel-pools"], capture_output=True, text=True)
    assert (done.stdout.strip() and done.returncode == 0) or (done.stderr.count("\n") == 1 and done.returncode == 1)
    done = subprocess.run(
        [sys.executable, "-m", "pagepool.cli", "kernel-pools", "--json"], capture_output=True, text=True
    )
    assert all(json.loads(line) for line in done.stdout.splitlines())

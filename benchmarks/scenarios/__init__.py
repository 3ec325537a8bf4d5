# SPDX-License-Identifier: MIT
"""The scenarios, one a file, in the order of the table."""

from benchmarks.scenarios import (
    arrow,
    baseline,
    bulk,
    cross_thread,
    fast_path,
    filter,
    handles,
    mapping,
    mempool,
    ptr_ring,
    sharing,
    slow,
    tensors,
)

__all__ = ["CASES"]

#: What each scenario times. `baseline` always runs: the others are read against it.
CASES = {
    "baseline": baseline.cases,
    "fast_path": fast_path.cases,
    "ptr_ring": ptr_ring.cases,
    "slow": slow.cases,
    "cross_thread": cross_thread.cases,
    "bulk": bulk.cases,
    "handles": handles.cases,
    "tensors": tensors.cases,
    "mapping": mapping.cases,
    "arrow": arrow.cases,
    "mempool": mempool.cases,
    "filter": filter.cases,
    "sharing": sharing.cases,
}

# SPDX-License-Identifier: MIT
"""Print what tests must not skip on a machine like this one, comma-separated, for pytest's ``--require``.

It looks at the user's capabilities and at the system's knobs, never at `pagepool.probe`: a probe that says no where
this says yes fails the tests that need it.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN = 12, 13, 21


def required() -> list[str]:
    """Return the needs that this kind of machine fulfils."""
    needs = ["compiled_core", "pyarrow"]  # libraries that `make test` installs
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        needs.append("free_threading")
    else:
        needs += ["polars", "duckdb"]  # wheels of the stable ABI, which a build without a GIL cannot load
    if os.geteuid() == 0:
        needs.append("root")
    capabilities = _capabilities()
    if all(capabilities >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN)):
        needs.append("netns")
        if _kernel_has("xsk_generic_rcv"):
            needs.append("af_xdp")
    if os.access("/proc/sys/vm/nr_hugepages", os.W_OK) and Path("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir():
        needs.append("hugetlb")
    needs += [name for name in ("clang",) if shutil.which(name)]
    return needs


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _kernel_has(symbol: str) -> bool:
    try:
        return f" {symbol}\n" in Path("/proc/kallsyms").read_text()
    except OSError:
        return False


if __name__ == "__main__":
    print(",".join(required()))

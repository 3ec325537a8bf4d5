# SPDX-License-Identifier: MIT
"""DPDK's ``rte_mempool``, in turns with our rows: what a pool in C costs on this machine.

Only with ``--peers`` and where libdpdk is installed. Elsewhere the targets use the ratio that was measured on
the reference machine, and the table says so.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial

from benchmarks.case import Case
from benchmarks.peers.build import PeerError, build_peer, pkg_config
from benchmarks.setting import Setting

__all__ = ["REFERENCE_FRESH_NS", "REFERENCE_MEMPOOL_NS", "cases", "mempool_name"]

SIZES = (1, 4, 8, 32, 64)
REFERENCE_MEMPOOL_NS = 5.6  # bulk 1, DPDK 22.11 ...
REFERENCE_FRESH_NS = 8513.0  # ... on a machine where a fresh page (mmap, touch, munmap) cost this much


def mempool_name(n: int) -> str:
    """Return the name of the row of `n` objects."""
    return f"rte_mempool bulk {n}"


def cases(stack: ExitStack, setting: Setting) -> list[Case]:
    """Return rte_mempool's rows, or none and a note why."""
    why = "ask for it by --peers"
    if setting.peers:
        try:
            peer = _Mempool(setting.where.cpu)
            why = ""
        except PeerError as error:
            why = str(error)
    if why:
        reference = f"{REFERENCE_MEMPOOL_NS} ns where a fresh page is {REFERENCE_FRESH_NS / 1000:.1f} us"
        setting.notes.append(f"rte_mempool was not run ({why}); its bulk 1 is taken from another machine: {reference}")
        return []
    stack.callback(peer.close)
    return [
        Case(mempool_name(n), partial(peer.measure, n), f"DPDK get {n} + put {n}, cached", n, overhead=None)
        for n in SIZES
    ]


class _Mempool:
    """The C program, waiting for work."""

    def __init__(self, cpu: int) -> None:
        program = build_peer("mempool", *pkg_config("libdpdk"))
        self._process = subprocess.Popen(
            [
                str(program),
                *("--no-huge", "-m", "128", "--no-pci", "--no-shconf", "--no-telemetry"),
                *("--lcores", f"0@{cpu}", "--log-level", "lib.*:error"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if "ready" not in self._answer():
            self._process.kill()
            _, complaint = self._process.communicate()
            raise PeerError(f"it does not start: {complaint.strip()[-300:]}")

    def measure(self, n: int, times: int) -> int:
        """Return the nanoseconds of `times` rounds of taking and putting `n` objects."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n} {times}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line.startswith("EAL:"):
            line = self._process.stdout.readline()
        return line

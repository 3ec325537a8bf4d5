# SPDX-License-Identifier: MIT
"""``python -m benchmarks [--json FILE] [--quick] [--peers] [scenario ...]``"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Figure
from benchmarks.machine import describe_machine
from benchmarks.quiet import quiet
from benchmarks.report import (
    drained_rows,
    figure_rows,
    forwarded_rows,
    received_rows,
    show_drained,
    show_figures,
    show_forwarded,
    show_received,
    show_standings,
    standing_rows,
    write_json,
)
from benchmarks.rounds import run_rounds
from benchmarks.scenarios import CASES
from benchmarks.scenarios.af_xdp import receive_rows
from benchmarks.scenarios.forward import forward_rows
from benchmarks.scenarios.queues import queue_rows
from benchmarks.setting import Setting
from benchmarks.targets import standings

# Not timed in rounds with the others: whole devices, and processes of their own.
AF_XDP, FORWARD, QUEUES = DEVICES = ("af_xdp", "forward", "queues")


def main() -> None:
    """Run the scenarios that were named, or all; print tables; write JSON if asked."""
    asked = _arguments()
    machine = describe_machine()
    with quiet() as where:
        setting = Setting(where, quick=asked.quick, peers=asked.peers)
        content: dict[str, Any] = {"machine": machine, "setting": asdict(setting)}
        names = asked.scenario or [*CASES, *DEVICES]
        figures = _run_cases(setting, names) if set(names) - set(DEVICES) else {}
        received = receive_rows(setting) if AF_XDP in names else []
        forwarded = forward_rows(setting) if FORWARD in names else []
        drained = queue_rows(setting) if QUEUES in names else []
    setting.progress("")
    reached = standings(figures, received)
    show_figures(figures)
    show_received(received)
    show_forwarded(forwarded)
    show_drained(drained)
    show_standings(reached)
    for note in setting.notes:
        print(f"note: {note}")
    content |= {
        "times": figure_rows(figures),
        "receive": received_rows(received),
        "forward": forwarded_rows(forwarded),
        "queues": drained_rows(drained),
        "targets": standing_rows(reached),
        "notes": setting.notes,
    }
    if asked.json is not None:
        write_json(asked.json, content)


def _run_cases(setting: Setting, names: list[str]) -> dict[str, Figure]:
    with ExitStack() as stack:
        cases: list[Case] = []
        for name, make in CASES.items():
            if name in names or name == "baseline":
                cases += make(stack, setting)
        return run_rounds(cases, setting.rounds, setting.sample_ms, setting.progress)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of pagepool.")
    parser.add_argument("scenario", nargs="*", choices=[*CASES, *DEVICES, []], help="all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and the machine there")
    parser.add_argument("--quick", action="store_true", help="few, short rounds: not for figures")
    parser.add_argument("--peers", action="store_true", help="also build and run DPDK's rte_mempool, if installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()

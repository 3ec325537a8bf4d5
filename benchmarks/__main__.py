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
    figure_rows,
    received_rows,
    show_figures,
    show_received,
    show_standings,
    standing_rows,
    write_json,
)
from benchmarks.rounds import run_rounds
from benchmarks.scenarios import CASES
from benchmarks.scenarios.af_xdp import receive_rows
from benchmarks.setting import Setting
from benchmarks.targets import standings

AF_XDP = "af_xdp"  # not timed in rounds with the others: its receivers are processes of their own


def main() -> None:
    """Run the scenarios that were named, or all; print tables; write JSON if asked."""
    asked = _arguments()
    machine = describe_machine()
    with quiet() as where:
        setting = Setting(where, quick=asked.quick, peers=asked.peers)
        content: dict[str, Any] = {"machine": machine, "setting": asdict(setting)}
        names = asked.scenario or [*CASES, AF_XDP]
        figures = _run_cases(setting, names) if set(names) - {AF_XDP} else {}
        received = receive_rows(setting) if AF_XDP in names else []
    setting.progress("")
    reached = standings(figures, received)
    show_figures(figures)
    show_received(received)
    show_standings(reached)
    for note in setting.notes:
        print(f"note: {note}")
    content |= {
        "times": figure_rows(figures),
        "receive": received_rows(received),
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
    parser.add_argument("scenario", nargs="*", choices=[*CASES, AF_XDP, []], help="all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and the machine there")
    parser.add_argument("--quick", action="store_true", help="few, short rounds: not for figures")
    parser.add_argument("--peers", action="store_true", help="also build and run DPDK's rte_mempool, if installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""``pagepool probe``: what this machine can do for this user, and why not where it cannot."""

from __future__ import annotations

import json as _json
import os
import platform
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pagepool.cli.failure import CannotError
from pagepool.probe import PROBES, Answer

__all__ = ["probe_command"]

_WORDS = {
    "compiled_core": "the compiled core",
    "free_threading": "threads without a GIL",
    "root": "root",
    "netns": "network namespaces",
    "af_xdp": "AF_XDP sockets",
    "bpf_objects": "XDP programs of yours",
    "flow_rules": "flow rules in the NIC",
    "hugetlb": "reserved huge pages",
    "thp": "transparent huge pages",
    "numa": "several NUMA nodes",
    "memlock": "memory for devices",
    "vfio": "PCI devices by VFIO",
    "iommufd": "VFIO without containers",
    "torch": "frames as torch tensors",
    "cupy": "frames for CuPy",
    "pyarrow": "rx --write FILE.parquet",
    "polars": "frames for Polars",
    "duckdb": "rx --sql",
}


def probe_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only these; exit status 1 if one is a no.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what this machine can do, and why not."""
    unknown = [name for name in names or () if name not in PROBES]
    if unknown:
        raise CannotError(f"no probe {unknown[0]}; there are {', '.join(PROBES)}")
    answers = {name: PROBES[name]() for name in names or PROBES}
    if json:
        machine = {"kernel": platform.release(), "machine": platform.machine(), "cpus": os.cpu_count()}
        machine["python"] = platform.python_version()
        print(_json.dumps({**machine, "probes": {name: _as_dict(answer) for name, answer in answers.items()}}))
    else:
        _print(answers, whole=not names)
    if names and not all(answers.values()):
        raise typer.Exit(1)


def _as_dict(answer: Answer) -> dict[str, bool | str]:
    return {"ok": answer.ok, "reason": answer.reason}


def _print(answers: dict[str, Answer], *, whole: bool) -> None:
    console = Console(highlight=False)
    if whole:
        system = f"Linux {platform.release()} on {platform.machine()}, {os.cpu_count()} CPUs"
        console.print(f"{system}, Python {platform.python_version()}\n")
    for name, answer in answers.items():
        line = Text("  ")
        line.append("yes  " if answer else "no   ", style="green" if answer else "yellow")
        line.append(f"{name:<15} {_WORDS.get(name, ''):<24} {answer.reason}")
        console.print(line, soft_wrap=True)
    if whole:
        console.print("\n" + _conclusion(answers), soft_wrap=True)


def _conclusion(answers: dict[str, Answer]) -> str:
    missing = [name for name in ("netns", "af_xdp") if not answers[name]]
    if not missing:
        return "pagepool rx will use real AF_XDP, on IFACE or on a veth pair of its own."
    return f"pagepool rx will use the loopback NIC, for want of {' and '.join(missing)}."

# SPDX-License-Identifier: MIT
"""What the documentation says to type does what it says: its commands and code, on interfaces of those names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND
from elf_writer import counting_program
from queues import frame_to_near

from ntuple_nic import NtupleNic
from pagepool.drivers.af_xdp import AfXdpQueue, XdpObject, open_queues
from pagepool.drivers.flow_rules import FlowRules
from pagepool.drivers.rx_queue import RxQueue
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted({found for page in PAGES for found in re.findall(r"\bpagepool (rx eth0[^`\n]*)", page.read_text())})
Send = Callable[[], None]


def blocks(page: str) -> list[str]:
    """Return the Python code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture
def send() -> Iterator[Send]:
    """``eth0`` and ``eth1`` with four queues each, the thread among them; and a function that sends to both."""
    with ExitStack() as undo:
        first = undo.enter_context(VethPair(nr_queues=4, gro=True, near_name="eth0"))
        second = undo.enter_context(VethPair(nr_queues=4, gro=True, near_name="eth1", near_ns=first.near.ns))
        undo.enter_context(first.near.ns)
        cpu = min(os.sched_getaffinity(0))
        generators = [
            undo.enter_context(LiveGenerator(pair.far, frame_to_near(pair, dst_port=53), cpu=cpu))
            for pair in (first, second)
        ]

        def send() -> None:
            for generator in generators:
                generator.send(50)

        yield send


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that would go on for ever end when nothing comes."""
    forever = RxQueue.poll_forever
    monkeypatch.setattr(RxQueue, "poll_forever", lambda queue, budget=64: forever(queue, budget, 0.3))


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.needs_duckdb
@pytest.mark.needs_pyarrow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs(send: Send, tmp_path: Path, command: str) -> None:
    (tmp_path / "my_prog.o").write_bytes(counting_program(name="function"))
    arguments = [*COMMAND, *shlex.split(command)[1:], "--seconds", "1"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    if "--steer" in command:  # veth has no rules
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "the driver of eth0 has no flow rules" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert "frames in" in done.stdout


def test_code_of_the_page_on_forwarding(send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = min(os.sched_getaffinity(0))
    opening, threads, bridging = (
        next(block for block in blocks("forwarding.md") if word in block)
        for word in ("open_queues(", "run_queues(", "Bridge(")
    )
    threads = threads.replace("seconds=10", "seconds=2").replace("[0, 1, 2, 3]", repr([cpu] * 4))
    seen: list[int] = []
    opened = opening.replace("    ...", textwrap.indent(f"send()\n{threads}", "    "))
    exec(opened, {"handler": lambda batch: seen.append(len(batch)), "send": send})
    assert sum(seen) == 100
    with open_queues(["eth0", "eth1"]) as queues:
        send()  # they wait in the rings
        exec(bridging.replace("seconds=10", "seconds=2"), {"a": queues[:4], "b": queues[4:]})
    assert capsys.readouterr().out.count("forwarded=50") == 2


@pytest.mark.needs_clang
def test_code_of_the_page_on_early_demux(
    send: Send, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, rules = blocks("demux.md")
    source = ROOT / "tests" / "kernel" / "bpf" / "allow_list.c"
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    monkeypatch.chdir(tmp_path)
    subprocess.run(["clang", *["-O2", "-g", "-target", "bpf", "-c"], include, source, "-o", "my_prog.o"], check=True)
    names: dict[str, Any] = {"AfXdpQueue": AfXdpQueue, "FlowRules": FlowRules, "XdpObject": XdpObject, "send": send}
    exec(program.replace("    for batch", "    send()\n    for batch"), names)
    assert capsys.readouterr().out == "150\n"  # it weighs each of the 50 by three
    nic = NtupleNic(monkeypatch)
    exec(rules, names)
    assert nic.table == {}


@pytest.mark.needs_duckdb
@pytest.mark.needs_polars
@pytest.mark.needs_pyarrow
def test_code_of_the_page_on_arrow(send: Send, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    (block,) = blocks("arrow.md")
    reading, handing = block.split("frames = to_arrow(batch)")
    written: list[Any] = []

    class Writer:
        write_batch = written.append

    names: dict[str, Any] = {"flight_writer": Writer}
    with AfXdpQueue("eth0") as queue:
        names["queue"] = queue
        send()
        exec(reading, names)
        assert queue.xdp_stats.rx_frames == 50
        queue.claim()  # a thread of DuckDB's had it
        send()
        names["batch"] = queue.poll(64)
        exec("frames = to_arrow(batch)" + handing, names)
        assert pq.read_table("frames.parquet").num_rows == written[0].num_rows == 50
        written.clear()
        names.clear()

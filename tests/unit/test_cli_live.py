# SPDX-License-Identifier: MIT
"""The live screen: it fits, it says what it should, and it leaves the terminal as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections import deque
from dataclasses import replace

import pytest
from rich.console import Console

from pagepool import PagePool
from pagepool.cli import units
from pagepool.cli.forwarding import Forwarding
from pagepool.cli.live import LiveReport
from pagepool.cli.meter import Meter, QueueSample, Sample, rates
from pagepool.cli.tap import ACTIONS, Tap
from pagepool.cli.wire import Loopback, WireOptions
from pagepool.drivers.queue_threads import run_queues


def sample(at_s: float, frames: int, queues: int = 1, lost: int = 0) -> Sample:
    with PagePool() as pool:
        pool.alloc_pages().put()
        figures = pool.stats()
    each = tuple(QueueSample("near", n, frames, 60 * frames, lost, 0, n + 1, figures) for n in range(queues))
    return Sample(at_s, each, None, 1, 2 << 20, "4 KiB pages")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("queues", [1, 2, 16])
def test_screen_fits_a_terminal(width: int, queues: int) -> None:
    console = Console(width=width, height=24, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    report = LiveReport(console, 10)
    wire = Loopback(WireOptions(tuple(range(queues))), "no AF_XDP on a veth pair for this user: netns: EPERM")
    report.begin(wire, sample(0, 0, queues))
    try:
        now = sample(1, 2_400_000, queues, lost=1000)
        console.print(report.screen(now, rates(sample(0, 0, queues), now)))
        lines = console.export_text().splitlines()
    finally:
        report.close()
    assert len(lines) <= 24, lines
    assert max(map(len, lines)) < width
    text = "\n".join(lines)
    for word in ("Mpps", "bit/s", "cached", "ringed", "at the device", "fast", "refill", "slow", "map", "recycled"):
        assert word in text


@pytest.mark.parametrize("queues", [1, 2])
def test_screen_of_a_forwarding_shows_both_ways_and_fits(queues: int) -> None:
    console = Console(width=80, height=24, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    report = LiveReport(console, 10)
    wire = Forwarding("eth0", "eth1", WireOptions())

    def at(at_s: float, forwarded: int) -> Sample:
        plain = sample(at_s, forwarded, 2 * queues)
        named = [
            replace(queue, name=f"eth{n // queues}", forwarded=forwarded * (1 + n // queues), refused=7, copied=0)
            for n, queue in enumerate(plain.queues)
        ]
        return replace(plain, queues=tuple(named))

    report._wire, report._recent = wire, deque([at(0, 0)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forwarding, "title", "eth0 and eth1")
        console.print(report.screen(at(1, 1_000_000), rates(at(0, 0), at(1, 1_000_000))))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) < 80
    text = "\n".join(lines)
    assert f"eth0 → eth1{units.per_second(1e6 * queues):>11}" in text
    assert f"eth1 → eth0{units.per_second(2e6 * queues):>11}" in text
    assert f"{7 * queues} refused" in text
    assert "0 copied" in text


def test_terminal_is_left_as_it_was() -> None:
    primary, replica = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pagepool.cli", "rx", "--loopback", "--seconds", "1"],
        stdout=replica,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    ) as process:
        os.close(replica)
        out = b""
        try:
            while chunk := os.read(primary, 65536):
                out += chunk
        except OSError:  # the last writer has closed its end
            pass
        assert process.wait(timeout=20) == 0
    os.close(primary)
    text = out.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "Where pages come from" in plain
    assert plain.rstrip().endswith("pages")
    assert plain.index("frames in") > plain.rindex("Where pages come from")


def test_dumb_terminal_gets_lines() -> None:
    primary, replica = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "pagepool.cli", "rx", "--loopback", "--seconds", "0.3"],
        stdout=replica,
        env={**os.environ, "TERM": "dumb"},
        timeout=20,
        check=False,
    )
    os.close(replica)
    assert done.returncode == 0
    text = os.read(primary, 65536).decode()
    os.close(primary)
    assert "\x1b" not in text
    assert text.startswith("receiving over")


def test_rates_are_differences_over_time() -> None:
    rate = rates(sample(1.0, 1000, lost=5), sample(3.0, 5000, lost=15))
    assert (rate.packets, rate.bits, rate.lost) == (2000, 2000 * 480, 5)


def test_meter_sees_what_the_taps_received() -> None:
    with Loopback(WireOptions((0, 1))) as wire:
        taps = [Tap(queue.name, ACTIONS["drop"]) for queue in wire.queues]
        meter = Meter(wire, taps)
        run_queues(wire.queues, taps, seconds=0.2)
        seen = meter.sample()

    assert seen.total("frames") == sum(tap.frames for tap in taps) > 0
    assert seen.total("at_device") == seen.total("lent") > 0
    assert seen.maps == 2
    assert seen.allocator_calls == seen.total("slow") == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.per_second(0), "0 pps"),
        (units.per_second(999.6), "1.00 kpps"),
        (units.per_second(1_890_112), "1.89 Mpps"),
        (units.bits_per_second(0.91e9), "0.91 Gbit/s"),
        (units.bits_per_second(13.6e6), "13.6 Mbit/s"),
        (units.short(99_999), "99,999"),
        (units.short(9_412_608), "9.41 M"),
        (units.times(1), "once"),
        (units.times(65), "65 times"),
        (units.bytes_of(2 << 20), "2 MiB"),
        (units.bytes_of(1536), "1.5 KiB"),
        (units.percent(0.9996), "99.96 %"),
        (units.percent(0.999996), "99.9996 %"),
        (units.percent(0.0388), "3.88 %"),
        (units.percent(1.0), "100 %"),
        (units.seconds(28.2), "28.2 s"),
        (units.seconds(106), "106 s"),
        (units.seconds(3.1e-3), "3.10 ms"),
        (units.seconds(5e-9), "5 ns"),
        (units.seconds(300), "5.0 min"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected

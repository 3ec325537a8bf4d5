# SPDX-License-Identifier: MIT
"""Markers name a need; a probe answers it; ``--require`` turns a wanted skip into a failure."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import settings

from pagepool import probe

# A slow example is a busy machine, not a bug: no test asserts a time.
settings.register_profile("pagepool", deadline=None)
settings.load_profile("pagepool")


def libpcap() -> probe.Answer:
    """Whether libpcap can be loaded, to compare with; the library itself never needs it."""
    name = ctypes.util.find_library("pcap")
    return probe.Answer(name is not None, name or "not installed (Debian: libpcap0.8)")


def clang() -> probe.Answer:
    """Whether there is a clang that makes BPF objects; the library only reads them."""
    path = shutil.which("clang")
    if path is None:
        return probe.Answer(False, "not installed (Debian: clang)")
    command = [path, "-target", "bpf", "-c", "-x", "c", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return probe.Answer(not said.returncode, said.stderr.strip() or path)


OF_TESTS: dict[str, Callable[[], probe.Answer]] = {"clang": clang, "libpcap": libpcap}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        help="comma-separated needs (as the needs_* markers without the prefix): a skip for one of them fails",
    )


@cache
def answer(need: str) -> probe.Answer:
    return OF_TESTS[need]() if need in OF_TESTS else probe.probe(need)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = {name for name in item.config.getoption("--require").split(",") if name}
    for marker in item.iter_markers():
        if not marker.name.startswith("needs_"):
            continue
        need = marker.name.removeprefix("needs_")
        if need == "vm":  # tests/vm answers that by itself
            continue
        found = answer(need)
        if not found and need in required:
            pytest.fail(f"{need} is required here: {found.reason}", pytrace=False)
        if not found:
            pytest.skip(f"{need}: {found.reason}")

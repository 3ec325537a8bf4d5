# SPDX-License-Identifier: MIT
"""Markers name a need; a probe answers it; ``--require`` turns a wanted skip into a failure."""

from __future__ import annotations

from functools import cache

import pytest

from pagepool import probe


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        help="comma-separated needs (as the needs_* markers without the prefix): a skip for one of them fails",
    )


@cache
def answer(need: str) -> probe.Answer:
    return probe.probe(need)


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

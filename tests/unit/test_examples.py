# SPDX-License-Identifier: MIT
"""Every example runs as it is, for any user; the README's code is taken from them."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_says_something(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0] == "# SPDX-License-Identifier: MIT"
    assert lines[1].startswith('"""')


def test_examples_are_numbered_in_reading_order() -> None:
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))


@pytest.mark.parametrize("block", README_BLOCKS, ids=range(len(README_BLOCKS)))
def test_code_of_the_readme_is_code_of_an_example(block: str) -> None:
    texts = [path.read_text() for path in EXAMPLES]
    parts = [part for part in re.split(r"\n\n+", block.strip("\n")) if part]
    assert any(all(_is_in(part, text) for part in parts) for text in texts), block


def _is_in(part: str, text: str) -> bool:
    return any(textwrap.indent(part, " " * indent) in text for indent in (0, 4, 8))


def test_readme_has_code() -> None:
    assert len(README_BLOCKS) >= 2

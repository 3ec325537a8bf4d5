# SPDX-License-Identifier: MIT
"""Finds the guest's tests by reading the suites' source: nothing of a suite is imported on the host.

So the host knows every test before it boots anything, and a guest that dies half way cannot hide the rest.
What a suite may say for the host to read must therefore be literal: ``BOOTS``, ``MODULES``,
``@cases(...)``, ``@only_on(...)``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUITES_FOLDER = Path(__file__).resolve().parents[1] / "guest"


@dataclass(frozen=True)
class GuestTest:
    """One test of one suite in one boot; ``name`` has its case in brackets."""

    boot: str
    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.boot}-{self.suite}-{self.name}"


def discover(boots: list[str], folder: Path = SUITES_FOLDER) -> list[GuestTest]:
    """Return all tests of all suites in ``folder``, boot by boot, in the order in which they will run."""
    suites = [(path.stem, ast.parse(path.read_text())) for path in sorted(folder.glob("[a-z]*.py"))]
    return [
        GuestTest(boot, suite, name)
        for boot in boots
        for suite, tree in suites
        for name, wanted in _tests_of(tree, tuple(boots))
        if boot in wanted
    ]


def modules_of(suites: Iterable[str], folder: Path = SUITES_FOLDER) -> list[str]:
    """Return the folders of kernel modules that ``suites`` want built, each once: their ``MODULES``."""
    trees = (ast.parse((folder / f"{suite}.py").read_text()) for suite in dict.fromkeys(suites))
    return list(dict.fromkeys(name for tree in trees for name in _assigned(tree, "MODULES")))


def _assigned(tree: ast.Module, name: str) -> tuple[str, ...]:
    """Return the literal that a suite gives to ``name``; nothing where it gives none."""
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    return tuple(ast.literal_eval(values[-1])) if values else ()


def _tests_of(tree: ast.Module, boots: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Return (test name with case, boots that run it) in the order of the source."""
    found: list[tuple[str, tuple[str, ...]]] = []
    boots = _assigned(tree, "BOOTS") or boots
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            decorators = {ast.unparse(d.func): _literals(d) for d in node.decorator_list if isinstance(d, ast.Call)}
            name = node.name.removeprefix("test_")
            wanted = decorators.get("only_on", boots)
            cases = decorators.get("cases")
            found += [(f"{name}[{case}]", wanted) for case in cases] if cases else [(name, wanted)]
    return found


def _literals(call: ast.Call) -> tuple[str, ...]:
    return tuple(ast.literal_eval(argument) for argument in call.args)

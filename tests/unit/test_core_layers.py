# SPDX-License-Identifier: MIT
"""The rooms: imports point down only, what is public is listed, and stubs say what is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagepool

SOURCE = Path(__file__).resolve().parents[2] / "src" / "pagepool"

# A room may import from rooms below it, and from itself. Rooms of one height do not know each other.
HEIGHT = {
    "errors": 0,
    "probe": 0,
    "_core": 1,
    "netlink": 1,  # messages to the operating system's kernel; knows no pool at all
    "ethtool_ioctl": 1,  # as netlink, by ioctl
    "memory": 2,
    "dma": 2,
    "xdp": 2,
    "napi": 2,
    "ethtool": 2,  # what an interface can be told
    "kernel_pools": 2,  # the operating system's own pools; knows none of ours
    "system_pool": 3,
    "__init__": 4,
    "kernel": 5,
    "drivers": 5,
    "shared": 6,  # its borrowing end is a driver; no driver knows it
    "testing": 7,
    "integrations": 7,
    "cli": 8,
}
# Said on purpose: a probe tries the thing itself, at the call and not at import.
# `pagepool.attach` needs NumPy, and comes when it is asked for.
EXCEPTIONS = {("__init__", "shared"), *(("probe", room) for room in ("_core", "dma", "drivers", "ethtool"))}
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport|cimport\s+([\w.]+))", re.MULTILINE)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py").removesuffix(".pxd").removesuffix(".pyi")


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports or cimports, with its names where they may be modules."""
    text = path.read_text()
    if path.suffix == ".pxd":
        for match in CIMPORT.finditer(text):
            yield match[1] or match[2]
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = (node.module or "").removeprefix("cython.cimports.")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if module == "pagepool")


def edges() -> Iterator[tuple[Path, str, str]]:
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix not in (".py", ".pxd", ".pyi") or not path.is_file():
            continue
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "pagepool" and len(parts) > 1:
                to = parts[1]
                yield path, room_of(path), to if to in HEIGHT or (SOURCE / to).exists() else "__init__"


def test_every_room_has_its_height() -> None:
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms <= set(HEIGHT), f"new rooms need a place: {sorted(rooms - set(HEIGHT))}"


def test_imports_point_down_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {to}"
        for path, room, to in edges()
        if room != to and HEIGHT[to] >= HEIGHT[room] and (room, to) not in EXCEPTIONS
    ]
    assert wrong == []


def test_the_walk_sees_python_and_cython() -> None:
    seen = {(room, to) for _, room, to in edges()}
    assert {("_core", "errors"), ("memory", "_core"), ("__init__", "memory")} <= seen
    assert "pagepool._core.arena" in set(imports_of(SOURCE / "_core" / "tiers.pxd"))
    assert "pagepool._core.arena" in set(imports_of(SOURCE / "_core" / "tiers.py"))


def test_pagepool_imports_neither_numpy_nor_drivers() -> None:
    late = {"numpy", "pagepool.xdp", "pagepool.drivers", "pagepool.shared"}
    program = f"import sys, pagepool; print(sorted({late!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


PUBLIC = ["pagepool", *(f"pagepool.{room}" for room in ("dma", "memory", "xdp", "napi", "shared", "errors", "kernel"))]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_listed_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    ruffs_order = sorted(listed, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))
    assert listed in (ruffs_order, sorted(listed))
    for public in listed:
        assert getattr(module, public) is not None
    assert not [public for public in listed if public.startswith("_")]


def test_the_public_names() -> None:
    expected = {"PagePool", "PagePoolParams", "Page", "PPFlag", "DmaDir", "MapGranularity", "PoolStats", "Holder"}
    assert expected | {"pools", "PageAllocator", "MemoryKind", "default_allocator", "NUMA_NO_NODE"} <= set(
        pagepool.__all__
    )


COMPILED = [path.stem for path in sorted((SOURCE / "_core").glob("*.pyi"))]


# Classes that users meet. What PagePool inherits from the classes it is made of stands in its own stub.
WHOLE = {"Page", "PagePool", "Arena", "PtrRing", "DmaMap"}


def stub_names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


@pytest.mark.parametrize("stem", COMPILED)
def test_stubs_say_what_is_there(stem: str) -> None:
    module = importlib.import_module(f"pagepool._core.{stem}")
    tree = ast.parse((SOURCE / "_core" / f"{stem}.pyi").read_text())
    for name, node in stub_names(tree.body):
        thing = getattr(module, name)
        if not isinstance(node, ast.ClassDef):
            continue
        said = dict(stub_names(node.body))
        missing = [
            member for member in said if not hasattr(thing, member) and member not in ("direct_recycling", "__buffer__")
        ]
        assert missing == [], f"{name}: in the stub only"
        if name in WHOLE:
            silent = [member for member in dir(thing) if not member.startswith("_") and member not in said]
            assert sorted(set(silent) - {"ring"}) == [], f"{name}: not in the stub"


def test_stubs_cover_the_compiled_modules() -> None:
    modules = {path.stem for path in (SOURCE / "_core").glob("*.pxd")} - {"atomic"}
    assert modules == set(COMPILED)


@pytest.mark.parametrize("stem", COMPILED)
def test_what_is_public_is_documented(stem: str) -> None:
    module = importlib.import_module(f"pagepool._core.{stem}")
    for name, thing in vars(module).items():
        if inspect.isclass(thing) and thing.__module__ == module.__name__:
            for member, value in vars(thing).items():
                if not member.startswith("_") and (callable(value) or inspect.isgetsetdescriptor(value)):
                    assert value.__doc__ or inspect.isgetsetdescriptor(value), f"{name}.{member}"

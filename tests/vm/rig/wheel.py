# SPDX-License-Identifier: MIT
"""pagepool as the guest imports it: a wheel built here by an interpreter of its version, and unpacked.

The guest runs Debian's Python, so an extension fits if it was built for the same minor version and for a C
library not newer than the guest's. ``PAGEPOOL_VM_WHEEL`` chooses: unset builds this checkout, a path takes
that wheel, ``none`` leaves the guest without pagepool.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .packages import PYTHONS
from .unavailable import Unavailable

CHECKOUT = Path(__file__).resolve().parents[3]
SOURCES = ("src", "CMakeLists.txt", "pyproject.toml")
COMMAND_LIBRARIES = ("typer>=0.15", "rich>=13")  # what `pagepool rx` needs in the guest; its suite skips without
BUILD_MODULES = "scikit_build_core, cython_cmake, Cython, cmake, ninja"


@dataclass(frozen=True)
class Builder:
    """An interpreter of this machine whose minor version Debian has for the guest."""

    executable: str
    version: tuple[int, int]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter and return how it ended; outputs are captured."""
        return subprocess.run([self.executable, *arguments], capture_output=True, text=True, cwd=CHECKOUT)


def find_builder() -> Builder:
    """Return the running interpreter if Debian has its like, else another on the path.

    Raises
    ------
    Unavailable
        There is none.
    """
    if sys.version_info[:2] in PYTHONS and not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return Builder(sys.executable, sys.version_info[:2])
    for version in PYTHONS:
        found = shutil.which("python{}.{}".format(*version))
        builder = Builder(found or "", version)
        if found and builder.run("-c", "import pip").returncode == 0:
            return builder
    wanted = " or ".join("{}.{}".format(*version) for version in PYTHONS)
    raise Unavailable(f"no Python {wanted} on this machine to build the guest's pagepool with")


def installed_pagepool(cache: Path, builder: Builder) -> Path | None:
    """Return a folder with pagepool's wheel unpacked, or None if it was asked to do without.

    Raises
    ------
    RuntimeError
        The build failed; that is a failure, not a reason to skip.
    """
    choice = os.environ.get("PAGEPOOL_VM_WHEEL", "")
    if choice == "none":
        return None
    if choice:
        return _unpacked(Path(choice), cache / "wheels" / _digest([Path(choice)]))
    files = (path for name in SOURCES for path in sorted([CHECKOUT / name, *(CHECKOUT / name).rglob("*")]))
    digest = _digest([path for path in files if path.is_file() and "__pycache__" not in path.parts])
    target = cache / "wheels" / "cp{}{}-{}".format(*builder.version, digest)
    if not target.exists():
        _unpacked(_build(cache, builder), target)
        _add_libraries(target, builder)
    return target


def _build(cache: Path, builder: Builder) -> Path:
    """Build this checkout's wheel; without a network if the build's requirements are installed."""
    folder = cache / "wheels" / "new"
    shutil.rmtree(folder, ignore_errors=True)
    ready = builder.run("-c", f"import {BUILD_MODULES}").returncode == 0
    isolation = ["--no-build-isolation"] if ready else []
    build = f"-Cbuild-dir={_build_folder(cache, builder)}"
    done = builder.run("-m", "pip", "wheel", "--no-deps", *isolation, build, "--wheel-dir", str(folder), str(CHECKOUT))
    if done.returncode:
        raise RuntimeError(f"pagepool's wheel for the guest cannot be built:\n{(done.stdout + done.stderr)[-4000:]}")
    return next(folder.glob("*.whl"))


def _build_folder(cache: Path, builder: Builder) -> Path:
    """Return the folder to compile in: that of ``make build`` if it is this interpreter's, since all is done there."""
    made = CHECKOUT / "build" / "editable"
    settings = made / "CMakeCache.txt"
    if settings.is_file() and f"\nPython_EXECUTABLE:PATH={builder.executable}\n" in settings.read_text():
        return made
    checkout = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]  # cmake ties a build folder to its sources
    return cache / "cmake-cp{}{}-{}".format(*builder.version, checkout)


def _unpacked(wheel: Path, target: Path) -> Path:
    if not target.exists():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(target)
    return target


def _add_libraries(target: Path, builder: Builder) -> None:
    """Put the command's libraries beside pagepool; where they cannot be had, the guest goes without."""
    arguments = ("--quiet", "--no-compile", "--only-binary", ":all:", "--target", str(target))
    builder.run("-m", "pip", "install", *arguments, *COMMAND_LIBRARIES)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]

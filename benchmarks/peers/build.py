# SPDX-License-Identifier: MIT
"""Compile a peer with the machine's C compiler into ``build/peers``."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

__all__ = ["PeerError", "build_peer", "pkg_config"]

_HERE = Path(__file__).resolve().parent
_BUILT = _HERE.parent.parent / "build" / "peers"
_FLAGS = ("-O3", "-march=native", "-Wall", "-Wextra", "-std=gnu11")


class PeerError(RuntimeError):
    """A peer cannot be built or run here; the text says why."""


def build_peer(name: str, *flags: str) -> Path:
    """Return the program made of ``name.c``, compiling it if it is older than its source.

    Raises
    ------
    PeerError
        No compiler, or it refuses.
    """
    source, program = _HERE / f"{name}.c", _BUILT / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise PeerError("no C compiler (cc)")
    _BUILT.mkdir(parents=True, exist_ok=True)
    command = [compiler, *_FLAGS, str(source), "-o", str(program), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{name}.c does not compile: {done.stderr.strip()[:400]}")
    return program


def pkg_config(library: str) -> list[str]:
    """Return what the compiler needs to use `library`.

    Raises
    ------
    PeerError
        It is not installed, or pkg-config is not.
    """
    try:
        done = subprocess.run(("pkg-config", "--cflags", "--libs", library), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise PeerError(f"{library} is not installed (pkg-config does not know it)") from None
    return shlex.split(done.stdout)

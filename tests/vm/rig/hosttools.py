# SPDX-License-Identifier: MIT
"""Programs out of an unpacked package tree, run on this machine with that tree's own loader and libraries.

So the tree may come from another Debian than this machine's, and nothing need be installed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
ELF, INTERPRETER = b"\x7fELF", b"/lib64/ld-linux-x86-64.so.2\0"


def command(tree: Path, program: str) -> list[str]:
    """Return the start of a command line that runs ``program`` of ``tree``.

    Parameters
    ----------
    tree : Path
        A package set with its dependencies down to the C library, unpacked.
    program : str
        Name of a file in the tree's ``usr/bin``.
    """
    return [*_loader(tree), str(tree / "usr/bin" / program)]


def decompress(tree: Path, program: str, packed: bytes) -> bytes:
    """Return ``packed`` as ``program`` of ``tree`` (``zstd``, ``lz4``, ``xz`` ...) unpacks it."""
    return subprocess.run([*command(tree, program), "-dc"], input=packed, capture_output=True, check=True).stdout


def make_runnable(tree: Path, folders: list[str]) -> None:
    """Put a script in the place of every program below ``folders``, so that programs can start one another.

    A compiler calls its parts by path, and those would get this machine's loader. The program itself is
    beside the script, as ``NAME.elf``. Made anew each time, since the tree may have been moved.
    """
    for path in (path for folder in folders for path in (tree / folder).rglob("*")):
        program = path.with_name(path.name + ".elf")
        if path.suffix == ".elf" or path.is_symlink() or not path.is_file() or not os.access(path, os.X_OK):
            continue
        if not program.exists():
            with path.open("rb") as file:
                start = file.read(4096)
            if not start.startswith(ELF) or INTERPRETER not in start:
                continue
            path.rename(program)
        path.unlink(missing_ok=True)
        words = shlex.join(_loader(tree.resolve()))
        path.write_text(f'#!/bin/sh\nexec {words} --argv0 "$0" {shlex.quote(str(program.resolve()))} "$@"\n')
        path.chmod(0o755)


def _loader(tree: Path) -> list[str]:
    libraries = ":".join(str(tree / folder) for folder in LIBRARY_FOLDERS)
    loaders = (tree / folder / "ld-linux-x86-64.so.2" for folder in LIBRARY_FOLDERS)
    loader = next(path for path in loaders if path.is_file())
    return [str(loader), "--library-path", libraries]

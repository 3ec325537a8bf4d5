# SPDX-License-Identifier: MIT
"""Programs out of an unpacked package tree, run on this machine with that tree's own loader and libraries.

So the tree may come from another Debian than this machine's, and nothing need be installed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


def command(tree: Path, program: str) -> list[str]:
    """Return the start of a command line that runs ``program`` of ``tree``.

    Parameters
    ----------
    tree : Path
        A package set with its dependencies down to the C library, unpacked.
    program : str
        Name of a file in the tree's ``usr/bin``.
    """
    libraries = ":".join(str(tree / folder) for folder in LIBRARY_FOLDERS)
    loaders = (tree / folder / "ld-linux-x86-64.so.2" for folder in LIBRARY_FOLDERS)
    loader = next(path for path in loaders if path.is_file())
    return [str(loader), "--library-path", libraries, str(tree / "usr/bin" / program)]


def decompress(tree: Path, program: str, packed: bytes) -> bytes:
    """Return ``packed`` as ``program`` of ``tree`` (``zstd``, ``lz4``, ``xz`` ...) unpacks it."""
    return subprocess.run([*command(tree, program), "-dc"], input=packed, capture_output=True, check=True).stdout

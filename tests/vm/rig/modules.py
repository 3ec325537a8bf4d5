# SPDX-License-Identifier: MIT
"""Kernel modules that Debian does not ship, built on this machine for the kernel of a guest.

Built are folders of ``modules/``: each has a ``Kbuild``, and may have ``from_linux.txt``, a list of paths in
the kernel's source that are laid beside it unchanged. Headers, compiler and source come from the same mirror
as the kernel, in the versions that belong to it; nothing is installed, and nothing of Linux is in this
repository. What was built is kept under a name made of all that went into it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from . import hosttools
from .kernel import Kernel, load_order
from .packages import PackageCache, PackageSet, headers_of, source_of
from .unavailable import Unavailable

MODULES_FOLDER = Path(__file__).resolve().parents[1] / "modules"
FROM_LINUX = "from_linux.txt"
PROGRAMS = ["usr/bin", "usr/libexec/gcc", "usr/lib/gcc"]


@dataclass(frozen=True)
class ModuleBuilder:
    """Builds modules for one kernel.

    Parameters
    ----------
    packages : PackageCache
        What was built is kept in its folder, under ``modules``.
    kernel_set : PackageSet
        Where the kernel came from.
    kernel : Kernel
        The same, unpacked.

    Context: one process at a time per folder.
    """

    packages: PackageCache
    kernel_set: PackageSet
    kernel: Kernel

    def build(self, name: str) -> list[tuple[str, bytes]]:
        """Return (name, content) of the modules of folder ``name``, in order of loading.

        Raises
        ------
        Unavailable
            Headers, compiler or source cannot be had, this machine has no ``make``, or the modules do not fit
            this kernel; what the compiler said is in the cache folder, in ``modules/NAME.log``.
        """
        recipe = MODULES_FOLDER / name
        headers = self._headers()
        wanted = _listed(recipe)
        source = self.packages.tree(source_of(self.kernel_set, self.kernel.release)) if wanted else None
        folder = self.packages.folder / "modules" / f"{name}-{self.kernel.release}-{_digest(recipe, headers, source)}"
        if not folder.is_dir():
            stage = folder.with_name(f"{name}.build")
            shutil.rmtree(stage, ignore_errors=True)
            if source:
                _copy_sources(self._unpacked(source), wanted, stage)
            shutil.copytree(recipe, stage, dirs_exist_ok=True)
            self._make(headers, stage, folder.with_name(f"{name}.log"))
            for older in folder.parent.glob(f"{name}-{self.kernel.release}-*"):
                shutil.rmtree(older)
            built = folder.with_name(f"{name}.partial")
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            for path in stage.rglob("*.ko"):
                path.rename(built / path.name)
            shutil.rmtree(stage)
            built.rename(folder)
        return load_order({path.stem.replace("-", "_"): path.read_bytes() for path in sorted(folder.glob("*.ko"))})

    def _headers(self) -> Path:
        tree = self.packages.tree(headers_of(self.kernel_set))
        if not (tree / "usr/src" / f"linux-headers-{self.kernel.release}").is_dir():
            found = ", ".join(path.name for path in tree.glob("usr/src/linux-headers-*"))
            raise Unavailable(f"no headers of {self.kernel.release}, but {found}: PAGEPOOL_VM_REFRESH=1 gets both anew")
        return tree

    def _unpacked(self, source: Path) -> Path:
        """Return a folder with what any recipe wants of the kernel's source: its archive takes long to read, once."""
        wanted = sorted({pattern for recipe in MODULES_FOLDER.iterdir() for pattern in _listed(recipe)})
        digest = hashlib.sha256("\n".join([source.name, *wanted]).encode()).hexdigest()[:12]
        folder = self.packages.folder / "modules" / f"linux.{digest}"
        if not folder.is_dir():
            stage = folder.with_name("linux.unpacking")
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
            _take_sources(source, wanted, stage)
            for older in folder.parent.glob("linux.*"):
                if older != stage:
                    shutil.rmtree(older)
            stage.rename(folder)
        return folder

    def _make(self, headers: Path, stage: Path, log: Path) -> None:
        if not shutil.which("make"):
            raise Unavailable("no make on this machine: kernel modules are built with it")
        kbuild = [str(path.relative_to(headers)) for path in headers.glob("usr/lib/linux-kbuild-*")]
        hosttools.make_runnable(headers, [*PROGRAMS, *kbuild])
        output = (headers / "usr/src" / f"linux-headers-{self.kernel.release}").resolve()
        common = next(headers.glob("usr/src/linux-headers-*-common")).resolve()
        with log.open("w") as file:
            made = subprocess.run(
                [
                    *("make", "-C", str(common), f"KBUILD_OUTPUT={output}", f"M={stage.resolve()}"),
                    *(f"-j{os.cpu_count() or 1}", "CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"),
                ],
                env={"PATH": f"{headers.resolve()}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if made.returncode:
            said = (line for line in log.read_text(errors="replace").splitlines() if "rror" in line)
            raise Unavailable(f"does not build for {self.kernel.release}: {next(said, 'no message')} ({log})")


def _listed(recipe: Path) -> list[str]:
    listing = recipe / FROM_LINUX
    return [line for line in listing.read_text().splitlines() if line] if listing.exists() else []


def _digest(recipe: Path, *trees: Path | None) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for tree in trees:
        digest.update(tree.name.encode() if tree else b"-")
    for path in sorted(path for path in recipe.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(recipe)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _take_sources(source: Path, wanted: list[str], folder: Path) -> None:
    """Unpack the files of the kernel's source that match one of ``wanted`` into ``folder``."""
    with tarfile.open(next(source.glob("usr/src/linux-source-*.tar.xz"))) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and any(fnmatch(name, pattern) for pattern in wanted):
                content = archive.extractfile(member)
                assert content is not None
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


def _copy_sources(folder: Path, wanted: list[str], stage: Path) -> None:
    """Copy the unpacked files that match ``wanted`` into ``stage``."""
    missing = set(wanted)
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        matched = {pattern for pattern in wanted if path.is_file() and fnmatch(name, pattern)}
        if matched:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / name)
            missing -= matched
    if missing:
        raise Unavailable(f"the source of this kernel has no {', '.join(sorted(missing))}")

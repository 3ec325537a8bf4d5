# SPDX-License-Identifier: MIT
"""Which Debian packages the rig is made of, and the cache in which they lie unpacked.

Only names without a version are written here (``linux-image-cloud-amd64`` depends on whatever is newest), so
that new versions need no change. What a set led to is kept in ``packages.json``, by all that the set asks for: it is
asked again after a week or when the set was changed, and when the mirror is out of reach an older answer to the same
question that lies unpacked will do.

The guest's Python is the Debian one with the minor version of the interpreter that builds pagepool's wheel.
QEMU brings its own libraries and loader along: it runs on any Debian, whatever that one has installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .apt import PrivateApt, Suite, machine_mirror
from .unavailable import Unavailable

MAX_AGE_SECONDS = 7 * 24 * 3600
SUITES = [Suite(name) for name in ("bookworm", "bookworm-security", "trixie", "trixie-security", "trixie-backports")]
BOOKWORM, TRIXIE, TRIXIE_BACKPORTS = SUITES[:2], SUITES[2:4], SUITES[2:]


@dataclass(frozen=True)
class PackageSet:
    """Packages that are unpacked together into one tree, with all they depend on.

    Parameters
    ----------
    suites : list of Suite
        Where the packages and their dependencies may come from.
    prefer : str
        Suite to take them from although apt would take another; needed for backports.
    keep : str
        Only files whose name starts so are downloaded: a kernel does not need the userland it depends on.
    """

    name: str
    suites: list[Suite]
    packages: list[str]
    prefer: str = ""
    keep: str = ""

    @property
    def key(self) -> str:
        """The name, and a digest of the question: a changed set is another one."""
        question = [[suite.name for suite in self.suites], self.packages, self.prefer, self.keep]
        return f"{self.name} {hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]}"


def _python(minor: int, suites: list[Suite]) -> PackageSet:
    packages = [f"python3.{minor}-minimal", f"libpython3.{minor}-stdlib", "python3-numpy"]
    return PackageSet(f"python3.{minor}", suites, packages)


KERNEL = ["linux-image-cloud-amd64"]  # a third of the full kernel, boots faster, has all that VFIO needs
KERNEL_OLDEST = PackageSet("kernel-oldest", BOOKWORM, KERNEL, keep="linux-")  # 6.1
KERNEL_NEWEST = PackageSet("kernel-newest", TRIXIE_BACKPORTS, KERNEL, prefer="trixie-backports", keep="linux-")


def headers_of(kernel: PackageSet) -> PackageSet:
    """Return what modules of ``kernel`` are built with: its headers, and the compiler that it was built with."""
    name = kernel.name.replace("kernel", "headers")
    return PackageSet(name, kernel.suites, ["linux-headers-cloud-amd64", "binutils"], prefer=kernel.prefer)


def source_of(kernel: PackageSet, release: str) -> PackageSet:
    """Return the source of ``kernel``, whose packages are named after the first two numbers of its release."""
    version = ".".join(release.split(".")[:2])
    name = kernel.name.replace("kernel", "source")
    return PackageSet(name, kernel.suites, [f"linux-source-{version}"], prefer=kernel.prefer, keep="linux-source")


# 11.1. The 7.2 of bookworm has no igb. With the 10.0.13 of trixie the guest kernel's own virtio-net lost the
# 760th frame behind an IOMMU, or its queue died ("Guest moved used index from 761 to 0"); 11.1 lost none of
# 30,000. The smoke suite watches over it.
QEMU = PackageSet("qemu", TRIXIE_BACKPORTS, ["qemu-system-x86", "zstd", "lz4"], prefer="trixie-backports")
PYTHONS = {(3, 11): _python(11, BOOKWORM), (3, 13): _python(13, TRIXIE)}
# The guest's C library must not be older than the one the wheel was built with; a newer one will do.
GUEST_LIBC = PackageSet("libc", TRIXIE, ["libc6"], keep="libc6")


def default_cache() -> Path:
    """Return the cache folder: ``PAGEPOOL_VM_CACHE``, or ``build/vm-cache`` of the checkout."""
    checkout = Path(__file__).resolve().parents[3]
    return Path(os.environ.get("PAGEPOOL_VM_CACHE", checkout / "build" / "vm-cache"))


class PackageCache:
    """Unpacked package sets under one folder, each in a tree named after its content.

    Parameters
    ----------
    folder : Path
        Grows to about 600 MiB; may be deleted at any time, may be kept between CI runs.
    refresh : bool
        Ask the mirror even if the last answer is younger than a week.

    Context: one process at a time per folder.
    """

    def __init__(self, folder: Path, *, refresh: bool = False) -> None:
        self.folder = folder
        self._apt: PrivateApt | None = None
        self._lock_file = folder / "packages.json"
        lock: dict[str, Any] = {"time": 0.0, "sets": {}}
        if self._lock_file.is_file():
            lock = json.loads(self._lock_file.read_text())
        self._old_sets: dict[str, list[str]] = lock["sets"]
        fresh = not refresh and time.time() - lock["time"] < MAX_AGE_SECONDS
        self._sets: dict[str, list[str]] = dict(self._old_sets) if fresh else {}
        self._lock_time: float = lock["time"] if fresh else time.time()

    def tree(self, wanted: PackageSet) -> Path:
        """Return the folder in which ``wanted`` lies unpacked, downloading it if it is not there.

        Raises
        ------
        Unavailable
            The packages are neither here nor to be had: not Debian, no apt, no network.
        """
        known = self._sets.get(wanted.key, [])
        if known and self._complete_mark(wanted, known).exists():
            return self._tree_of(wanted, known)
        try:
            return self._download(wanted)
        except Unavailable:
            older = self._old_sets.get(wanted.key, [])
            if not older or not self._complete_mark(wanted, older).exists():
                raise
            return self._tree_of(wanted, older)  # not recorded as today's answer: the next run asks again

    def _download(self, wanted: PackageSet) -> Path:
        apt = self._updated_apt()
        resolved = apt.resolve(wanted.suites, wanted.packages, prefer=wanted.prefer)
        files = [name for name in resolved if name.startswith(wanted.keep)]
        tree = self._tree_of(wanted, files)
        if not self._complete_mark(wanted, files).exists():
            shutil.rmtree(tree, ignore_errors=True)
            apt.fetch(wanted.suites, files, tree)
            self._complete_mark(wanted, files).touch()
            self._forget_older_trees(wanted, tree)
        self._sets[wanted.key] = files
        self._lock_file.write_text(json.dumps({"time": self._lock_time, "sets": self._sets}, indent=1) + "\n")
        return tree

    def _tree_of(self, wanted: PackageSet, files: list[str]) -> Path:
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]
        return self.folder / "trees" / f"{wanted.name}-{digest}"

    def _complete_mark(self, wanted: PackageSet, files: list[str]) -> Path:
        return _mark_of(self._tree_of(wanted, files))

    def _updated_apt(self) -> PrivateApt:
        if self._apt is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            apt = PrivateApt(self.folder / "apt", machine_mirror())
            apt.update(SUITES)
            self._apt = apt
        return self._apt

    def _forget_older_trees(self, wanted: PackageSet, current: Path) -> None:
        for other in current.parent.glob(f"{wanted.name}-*"):
            if other.is_dir() and other != current and other.name.rpartition("-")[0] == wanted.name:
                _mark_of(other).unlink(missing_ok=True)
                shutil.rmtree(other)


def _mark_of(tree: Path) -> Path:
    """Return the empty file that says that ``tree`` is unpacked in full."""
    return tree.with_name(tree.name + ".complete")

# SPDX-License-Identifier: MIT
"""How kernel modules come to be built, with a kernel's headers and source of a few lines: nothing is downloaded."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from .rig import modules, session
from .rig.boots import BOOTS
from .rig.discovery import GuestTest
from .rig.kernel import Kernel
from .rig.modules import ModuleBuilder
from .rig.packages import KERNEL_NEWEST, PackageCache, PackageSet, headers_of, source_of
from .rig.unavailable import Unavailable

RELEASE = "7.2.1-cloud"
MAKEFILE = "modules:\n\t@echo compiling\n\tcat $(M)/*.c > $(M)/spy-on.ko\n"


class Trees(PackageCache):
    """A cache in which headers and source lie unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        for name in (f"headers/usr/src/linux-headers-{RELEASE}", "headers/usr/src/linux-headers-7.2.1-common"):
            (folder / name).mkdir(parents=True)
        self.makefile = folder / "headers/usr/src/linux-headers-7.2.1-common/Makefile"
        self.makefile.write_text(MAKEFILE)
        (folder / "source/usr/src").mkdir(parents=True)
        with tarfile.open(folder / "source/usr/src/linux-source-7.2.tar.xz", "w:xz") as archive:
            for name in ("linux-source-7.2/lib/tree.c", "linux-source-7.2/lib/other.c"):
                member = tarfile.TarInfo(name)
                member.size = 5
                archive.addfile(member, io.BytesIO(b"tree\n"))

    def tree(self, wanted: PackageSet) -> Path:
        self.asked += wanted.packages
        return self.folder / wanted.name.partition("-")[0]


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleBuilder:
    """A builder for a recipe ``spy`` of one file, and a kernel that says it is `RELEASE`."""
    monkeypatch.setattr(modules, "MODULES_FOLDER", tmp_path / "recipes")
    monkeypatch.setattr(Kernel, "release", RELEASE)
    (tmp_path / "recipes/spy").mkdir(parents=True)
    (tmp_path / "recipes/spy/spy.c").write_text("spy\n")
    return ModuleBuilder(Trees(tmp_path), KERNEL_NEWEST, Kernel(tmp_path, tmp_path))


def test_built_once_and_again_when_something_changed(builder: ModuleBuilder, tmp_path: Path) -> None:
    assert builder.build("spy") == [("spy_on", b"spy\n")]
    trees = builder.packages
    assert isinstance(trees, Trees)
    trees.makefile.write_text("modules:\n\tfalse\n")
    assert builder.build("spy") == [("spy_on", b"spy\n")]
    trees.makefile.write_text(MAKEFILE)
    (tmp_path / "recipes/spy/spy.c").write_text("spies\n")
    assert builder.build("spy") == [("spy_on", b"spies\n")]
    assert len([path for path in (tmp_path / "modules").iterdir() if path.is_dir()]) == 1


def test_the_kernels_own_files_lie_beside(builder: ModuleBuilder, tmp_path: Path) -> None:
    listing = tmp_path / "recipes/spy/from_linux.txt"
    listing.write_text("lib/tree.c\n")
    trees = builder.packages
    assert isinstance(trees, Trees)
    trees.makefile.write_text(MAKEFILE.replace("*.c", "*.c $(M)/lib/*.c"))
    assert builder.build("spy") == [("spy_on", b"spy\ntree\n")]
    assert "linux-source-7.2" in trees.asked
    listing.write_text("lib/tree.c\nlib/no_more.c\n")
    with pytest.raises(Unavailable, match=r"has no lib/no_more\.c"):
        builder.build("spy")


def test_why_it_cannot_be_built(builder: ModuleBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = builder.packages
    assert isinstance(trees, Trees)
    trees.makefile.write_text("modules:\n\t@echo 'spy.c:1: error: no such thing'\n\t@false\n")
    with pytest.raises(
        Unavailable, match=r"does not build for 7\.2\.1-cloud: spy\.c:1: error: no such thing \(.*spy\.log\)"
    ):
        builder.build("spy")
    monkeypatch.setattr(modules.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="no make on this machine"):
        builder.build("spy")
    monkeypatch.setattr(Kernel, "release", "7.2.2-cloud")
    with pytest.raises(Unavailable, match=r"no headers of 7\.2\.2-cloud, but .*PAGEPOOL_VM_REFRESH=1"):
        builder.build("spy")


def test_a_boot_goes_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest gets the reason in its plan, and the suites that want the modules skip with it."""

    def refuse(self: ModuleBuilder, name: str) -> None:
        raise Unavailable(f"{name} is not to be had")

    monkeypatch.setattr(ModuleBuilder, "build", refuse)
    with session.Rig(tmp_path) as rig:
        tests = [GuestTest("newest", "vfio_iommufd", "probe"), GuestTest("newest", "smoke", "numpy")]
        assert rig._build(next(boot for boot in BOOTS if boot.name == "newest"), Kernel(tmp_path, tmp_path), tests) == (
            {},
            {"iommufd": "iommufd is not to be had"},
        )


def test_headers_and_source_belong_to_the_kernel() -> None:
    assert headers_of(KERNEL_NEWEST).prefer == KERNEL_NEWEST.prefer
    assert source_of(KERNEL_NEWEST, "7.12.3+deb14-cloud-amd64").packages == ["linux-source-7.12"]
    assert len({KERNEL_NEWEST.name, headers_of(KERNEL_NEWEST).name, source_of(KERNEL_NEWEST, "7.2").name}) == 3

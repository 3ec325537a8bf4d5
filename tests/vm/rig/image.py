# SPDX-License-Identifier: MIT
"""The guest's root file system: cpio archives, one after another in one initrd.

The first is the userland (Python, numpy, their libraries): written once, then kept. The second has what
changes: the kernel's modules, the suites, pagepool and the plan; it takes a fraction of a second. No root, no
loop device, no shell. Everything in Python is compiled beforehand: in emulation that would take longer than
the tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from ..guest.support.plan import Plan
from . import cpio
from .cpio import CpioWriter
from .wheel import Builder

GUEST_FOLDER = Path(__file__).resolve().parents[1] / "guest"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# The links that Debian's alternatives make when the packages are configured, which nobody does here.
ALTERNATIVES = {"libblas.so.3": "blas/libblas.so.3", "liblapack.so.3": "lapack/liblapack.so.3"}
WANTED = re.compile(rf"usr/bin/python3\.\d+$|usr/lib/python3|{LIBRARIES}/.*\.so(\.|$)|usr/lib64/")
# What no suite misses, by folder and by library: every MiB costs the guest some 20 ms of start.
LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|xmlrpc|dbm|wsgiref|gconv|audit"
    r"|python3\.\d+/dist-packages|pkg_resources|setuptools|f2py|distutils)/"
    r"|/lib(db-|krb5|k5crypto|gssapi|tirpc|nsl|readline|pcre2|mvec|selinux|com_err|memusage|pcprofile|expatw)[^/]*$"
    r"|/numpy/core/_simd\."
)
INIT = """#!/usr/bin/python3.{minor} -IS
import sys
sys.path.insert(0, "/rig")
from vm.guest.support.init import main
main()
"""


def userland(folder: Path, trees: list[Path], builder: Builder) -> Path:
    """Return the archive of the guest's programs and libraries, made in ``folder`` the first time.

    Parameters
    ----------
    trees : list of Path
        Unpacked package sets; of a file in several the first counts.
    """
    recipe = "\n".join([*(tree.name for tree in trees), Path(__file__).read_text(), Path(cpio.__file__).read_text()])
    path = folder / f"userland-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.cpio"
    if path.exists():
        return path
    for older in folder.glob("userland-*"):
        older.unlink()
    partial = path.with_name(path.name + ".partial")
    with CpioWriter(partial) as archive:
        for name in ("proc", "sys", "dev", "tmp", "run", "root", "etc"):
            archive.add_folder(name)
        archive.add_device("dev/console", 5, 1)
        for name in ("bin", "sbin", "lib", "lib64"):
            archive.add_link(name, f"usr/{name}")
        for name, target in ALTERNATIVES.items():
            archive.add_link(f"{LIBRARIES}/{name}", target)
        for tree in trees:
            compile_python(tree / "usr/lib", builder, strip=tree)
            _add_tree(archive, tree)
    partial.rename(path)
    return path


def payload(
    folder: Path,
    modules: list[tuple[str, bytes]],
    built: dict[str, list[tuple[str, bytes]]],
    pagepool: Path | None,
    plan: Plan,
    builder: Builder,
) -> Path:
    """Write the archive of what changes from run to run into ``folder`` and return it.

    Parameters
    ----------
    modules : list of (name, content)
        Kernel modules that are loaded at the start, in order of loading.
    built : dict
        The same for each folder of modules that was built here; suites load them.
    """
    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(GUEST_FOLDER, stage / "rig/vm/guest", ignore=ignore)
    (stage / "rig/vm/__init__.py").touch()
    (stage / "rig/plan.json").write_text(plan.to_json())
    if pagepool:
        shutil.copytree(pagepool, stage / "site", ignore=ignore)
    compile_python(stage, builder, strip=stage)
    path = folder / "payload.cpio"
    with CpioWriter(path) as archive:
        archive.add_file("init", INIT.format(minor=builder.version[1]).encode(), mode=0o755)
        for place, found in [("rig/modules", modules), *((f"rig/built/{name}", ours) for name, ours in built.items())]:
            for name, content in found:
                archive.add_file(f"{place}/{name}.ko", content)
            archive.add_file(f"{place}/order", "\n".join(name for name, _ in found).encode())
        for source in sorted(stage.rglob("*")):
            archive.add_path(source, str(source.relative_to(stage)))
    return path


def compile_python(folder: Path, builder: Builder, *, strip: Path) -> None:
    """Write the ``.pyc`` of every module below ``folder``; tracebacks will name files without ``strip``.

    Unchecked, since files in an initrd have no time stamp worth comparing.
    """
    options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(strip), "-p", "/"]
    builder.run("-m", "compileall", *options, "-x", LEFT_OUT.pattern, str(folder))


def concatenate(archives: list[Path], path: Path) -> Path:
    """Write ``archives`` one after another into ``path`` and return it."""
    with path.open("wb") as initrd:
        for archive in archives:
            with archive.open("rb") as source:
                shutil.copyfileobj(source, initrd)
    return path


def _add_tree(archive: CpioWriter, tree: Path) -> None:
    for folder, subfolders, files in os.walk(tree):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for entry in sorted(files + links):
            source = Path(folder, entry)
            # Debian 12 still ships files in /lib, which is a link to /usr/lib once merged.
            name = re.sub(r"^(bin|sbin|lib|lib64)/", r"usr/\1/", str(source.relative_to(tree)))
            if WANTED.match(name) and not LEFT_OUT.search("/" + name):
                archive.add_path(source, name)

# SPDX-License-Identifier: MIT
"""Kernel modules: those of the image, loaded at the start, and those built on the host, which a suite loads.

A suite that wants modules of ``tests/vm/modules/NAME`` says ``MODULES = ("NAME",)`` and calls `load`.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from .plan import plan
from .suite import Skip

STOCK = Path("/rig/modules")
BUILT = Path("/rig/built")
LOADED = Path("/sys/module")
SYS_DELETE_MODULE, SYS_FINIT_MODULE = 176, 313

libc = ctypes.CDLL(None, use_errno=True)


def load(name: str, *only: str) -> None:
    """Load the modules that the host built from folder ``name``, or some of them, if they are not loaded already.

    Raises
    ------
    Skip
        They could not be built; the text says why.
    OSError
        The kernel refused one: its log says why.
    """
    if name in plan().missing_modules:
        raise Skip(f"modules {name}: {plan().missing_modules[name]}")
    for module in only or names(BUILT / name):
        insert(BUILT / name, module)


def replace_stock(name: str) -> None:
    """Load the modules of folder ``name`` in the place of the distribution's modules of the same names."""
    if name in plan().missing_modules:
        raise Skip(f"modules {name}: {plan().missing_modules[name]}")
    remove(names(BUILT / name))
    insert_all(BUILT / name)


def restore_stock(name: str) -> None:
    """Undo `replace_stock`."""
    remove(names(BUILT / name))
    insert_all(STOCK)


def names(folder: Path) -> list[str]:
    """Return the names of the modules in ``folder``, in order of loading."""
    return (folder / "order").read_text().split()


def insert_all(folder: Path) -> None:
    """Load the modules in ``folder``, in order."""
    for name in names(folder):
        insert(folder, name)


def insert(folder: Path, name: str) -> None:
    """Load one module, with the parameters that the host wants, if none of this name is loaded."""
    if is_loaded(name):
        return
    fd = os.open(folder / f"{name}.ko", os.O_RDONLY)
    try:
        if libc.syscall(SYS_FINIT_MODULE, fd, plan().module_parameters.get(name, "").encode(), 0):
            number = ctypes.get_errno()
            raise OSError(number, f"module {name}: {os.strerror(number)}")
    finally:
        os.close(fd)


def is_loaded(name: str) -> bool:
    """Whether there is a module of this name, not something built into the kernel."""
    return (LOADED / name / "initstate").exists()


def remove(modules: list[str]) -> None:
    """Unload those of ``modules``, given in order of loading, that are loaded."""
    for name in reversed(modules):
        if not is_loaded(name):
            continue
        if libc.syscall(SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK):
            number = ctypes.get_errno()
            users = [user.name for user in (LOADED / name / "holders").iterdir()]
            raise OSError(number, f"unload module {name} (used by {', '.join(users) or 'a file or a device'})")

# SPDX-License-Identifier: MIT
"""One boot from end to end: packages, image, QEMU, results; see `side_by_side` for several."""

from __future__ import annotations

import fcntl
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..guest.support.plan import DevicePlan, Plan
from . import image, qemu
from .boot_run import BootRun
from .boots import MODULES, Boot
from .devices import DEVICES, DISK_BYTES, NICS, SHARED_MEMORY_BYTES
from .discovery import GuestTest, modules_of
from .frames import FramePort
from .hostcalls import HostCalls
from .kernel import Kernel
from .modules import ModuleBuilder
from .packages import GUEST_LIBC, PYTHONS, QEMU, PackageCache, default_cache
from .serial import Machine
from .side_by_side import Share
from .unavailable import Unavailable
from .wheel import Builder, find_builder, installed_pagepool

LAST_WORDS_LINES = 25


@dataclass(frozen=True)
class Prepared:
    """What one machine is started from."""

    boot: Boot
    tools: Path
    files: qemu.Files


class Rig:
    """The pieces that all boots share; making one downloads nothing.

    Parameters
    ----------
    cache : Path
        See `packages.PackageCache`; ``None`` is the default one.
    limit_seconds : float
        For one boot; ``None`` takes ``PAGEPOOL_VM_SECONDS`` or 300.

    Raises
    ------
    Unavailable
        From `prepare`, and from the constructor: this machine cannot run the rig.

    Context: in a ``with`` block, which has the cache to itself; one thread calls `prepare`, any calls `boot`.
    """

    def __init__(self, cache: Path | None = None, limit_seconds: float | None = None) -> None:
        self.folder = (cache or default_cache()).resolve()
        self.limit_seconds = limit_seconds or float(os.environ.get("PAGEPOOL_VM_SECONDS", "600"))
        self.builder: Builder = find_builder()

    def __enter__(self) -> Rig:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # another run with this cache goes first
        self.packages = PackageCache(self.folder, refresh=os.environ.get("PAGEPOOL_VM_REFRESH", "") == "1")
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def prepare(self, share: Share) -> Prepared:
        """Make the files of a machine that will run a share of the tests."""
        boot, tests = share.boot, share.tests
        run_folder = self.folder / "runs" / share.name.replace(" ", "-")
        run_folder.mkdir(parents=True, exist_ok=True)
        tools = self.packages.tree(QEMU)
        kernel = Kernel(self.packages.tree(boot.kernel), tools)
        pagepool = installed_pagepool(self.folder, self.builder)
        trees = [self.packages.tree(GUEST_LIBC), self.packages.tree(PYTHONS[self.builder.version])]
        base = image.userland(self.folder, trees, self.builder)
        built, missing = self._build(boot, kernel, tests)
        plan = self._plan(boot, kernel, tests, pagepool is not None, missing)
        rest = image.payload(run_folder, kernel.modules(MODULES), built, pagepool, plan, self.builder)
        initrd = image.concatenate([base, rest], run_folder / "initrd.cpio")
        return Prepared(boot, tools, qemu.Files(run_folder, kernel.vmlinux(self.folder), initrd))

    def _build(
        self, boot: Boot, kernel: Kernel, tests: list[GuestTest]
    ) -> tuple[dict[str, list[tuple[str, bytes]]], dict[str, str]]:
        """Build the modules that the suites of ``tests`` want; return them, and why those missing are missing."""
        builder = ModuleBuilder(self.packages, boot.kernel, kernel)
        built, missing = {}, {}
        for name in modules_of(test.suite for test in tests):
            try:
                built[name] = builder.build(name)
            except Unavailable as reason:
                missing[name] = str(reason)
        return built, missing

    def boot(self, prepared: Prepared, run: BootRun, echo: Callable[[str], None] = lambda line: None) -> None:
        """Start the machine, feed what it says to ``run``, and return when it has ended.

        Parameters
        ----------
        echo : callable
            Gets every line of the guest as it comes.
        """
        # Without a name anywhere: it goes with the last process that has it, however that ends.
        with open(os.memfd_create("pagepool-vm"), "r+b", buffering=0) as shared:
            shared.truncate(SHARED_MEMORY_BYTES)
            self._boot(prepared.tools, prepared.files, shared, run, echo)

    def _boot(
        self, tools: Path, files: qemu.Files, shared: io.FileIO, run: BootRun, echo: Callable[[str], None]
    ) -> None:
        for path in (files.console, files.trace):
            path.unlink(missing_ok=True)
        with files.disk.open("wb") as disk:
            disk.truncate(DISK_BYTES)
        ports = {nic.name: FramePort(nic.mac) for nic in NICS}
        fds = {name: port.fileno_for_qemu() for name, port in ports.items()}
        calls = HostCalls(ports, files.trace, run.boot.fault_event, shared)
        started = time.monotonic()
        command = qemu.command_line(tools, run.boot, files, fds, shared.fileno())
        machine = Machine(command, [*fds.values(), shared.fileno()], files.log, self.limit_seconds)
        try:
            run.machine_started(machine.kill)
            for port in ports.values():
                port.close_qemus_end()
            for line in machine.lines():
                if line.startswith("HOST "):
                    calls.answer(line.removeprefix("HOST "), machine.answer)
                else:
                    run.feed(line)
                    echo(line)
        finally:
            machine.kill()  # has ended by itself, but after an error of ours
            machine.stop()
            for port in ports.values():
                port.close()
        console = files.console.read_text(errors="replace") if files.console.exists() else ""
        went_down = machine.ended == "powered off" and not run.results.done
        ended = "went down before the suites were done" if went_down else machine.ended
        run.finish(ended, last_words=_last_words(console), seconds=time.monotonic() - started)

    def _plan(
        self, boot: Boot, kernel: Kernel, tests: list[GuestTest], pagepool: bool, missing_modules: dict[str, str]
    ) -> Plan:
        suites: dict[str, list[str]] = {}
        for test in tests:
            suites.setdefault(test.suite, []).append(test.name)
        devices = [
            DevicePlan(
                device.name,
                device.bdf,
                device.vendor,
                device.device,
                device.nid,
                device.mac if device.is_nic else "",
            )
            for device in DEVICES
        ]
        return Plan(
            boot=boot.name,
            iommu=boot.iommu,
            kernel=kernel.release,
            python="{}.{}".format(*self.builder.version),
            suites=list(suites.items()),
            devices=devices,
            module_parameters=boot.module_parameters,
            missing_modules=missing_modules,
            pagepool=pagepool,
            test_seconds=int(self.limit_seconds / 2),
        )


def _last_words(console: str) -> str:
    """Return the kernel's messages from its first complaint on, or the last `LAST_WORDS_LINES` of them."""
    lines = console.splitlines()
    complaints = (at for at, line in enumerate(lines) if re.search(r"BUG:|Oops|Kernel panic|Traceback", line))
    start = next(complaints, max(len(lines) - LAST_WORDS_LINES, 0))
    return "\n".join(lines[start : start + LAST_WORDS_LINES])

# SPDX-License-Identifier: MIT
"""The guest's first process: mounts, loads modules, has the suites run, and powers off.

What it says goes to the second serial line, which nothing else writes to: the kernel's messages have the
first, and cannot land in the middle of a result.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import termios
import time
import traceback
from pathlib import Path

from .modules import STOCK, insert, names

RESULTS_LINE = "/dev/ttyS1"
LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC
MOUNTS = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/dev/shm"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
]

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Be the first process: never returns, and powers the machine off whatever happens."""
    try:
        for kind, target in MOUNTS:
            _mount(kind, target)
        _open_results_line()
        for name in names(STOCK):
            try:
                insert(STOCK, name)
            except OSError as error:
                print(error, flush=True)  # what misses it will say so
        facts = {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "seconds": round(time.clock_gettime(time.CLOCK_BOOTTIME), 2),
        }
        print("BOOT", json.dumps(facts), flush=True)
        run_suites()
        termios.tcdrain(1)
    except BaseException:
        Path("/dev/console").write_text(traceback.format_exc())
    os.sync()
    libc.reboot(LINUX_REBOOT_CMD_POWER_OFF)


def run_suites() -> None:
    """Run the suites in a process of its own, and wait for it."""
    pid = os.fork()
    if pid == 0:
        interpreter = f"/usr/bin/python3.{platform.python_version_tuple()[1]}"
        environment = {
            "PATH": "/usr/bin:/usr/sbin",
            "HOME": "/root",
            "PYTHONPATH": "/rig:/site",
            "LC_ALL": "C.UTF-8",
        }
        os.execve(interpreter, [interpreter, "-u", "-m", "vm.guest.support.suites"], environment)
    os.waitpid(pid, 0)


def _mount(kind: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        print(f"mount {target}: {os.strerror(ctypes.get_errno())}", flush=True)


def _open_results_line() -> None:
    """Make the second serial line standard output and error: raw, no echo, since the host answers on it."""
    fd = os.open(RESULTS_LINE, os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(fd)
    attributes[0] = attributes[1] = attributes[3] = 0  # input, output and local modes: no translation at all
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    os.dup2(fd, 1)
    os.dup2(fd, 2)

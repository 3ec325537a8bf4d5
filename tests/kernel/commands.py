# SPDX-License-Identifier: MIT
"""What the tests of ``pagepool rx`` share: run it, end it, and look at what it left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute

from pagepool.testing.veth import VethEnd

COMMAND = [sys.executable, "-W", "error", "-m", "pagepool.cli", "rx"]


def xdp_program(end: VethEnd) -> int:
    """Return the id of the program on an interface, 0 for none."""
    with end.ns, IPRoute() as route:
        (link,) = route.get_links(index=end.ifindex)
        found = link.get_attr("IFLA_XDP")
        return int(found.get_attr("IFLA_XDP_PROG_ID") or 0) if found is not None else 0


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command until its queue is open."""
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def rx(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)


def summary_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the last frames arrive, then end a JSON receive and return its summary."""
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pagepool: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr

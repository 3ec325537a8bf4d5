# SPDX-License-Identifier: MIT
"""What to tell the user about an error, in one line that says what to do.

Only words. Errors that this package raises on purpose have them; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import socket

from pagepool.drivers.af_xdp import FilterError
from pagepool.errors import PagePoolError

__all__ = ["CannotError", "explain", "failure_line"]


class CannotError(Exception):
    """Something asked for on the command line cannot be done; the text is the line to print."""


def failure_line(error: Exception) -> tuple[str | None, int]:
    """Return the line and the exit status for an error; None for the line if it is a bug."""
    message = getattr(error, "format_message", None)
    if message is not None:  # click's own: a wrong command line (typer brings its own copy of click)
        text = message() or "no subcommand"
        return f"{_one_line(text)} (try: pagepool --help)", 2
    if type(error).__name__ == "Abort":  # what click makes of Ctrl-C
        return "interrupted", 130
    if hasattr(error, "exit_code"):
        return "", int(error.exit_code)
    if isinstance(error, FilterError):
        return f"{_one_line(str(error))}; for example --filter 'udp port 53'", 1
    if isinstance(error, (CannotError, OSError, PagePoolError)):
        return _one_line(str(error)), 1
    return None, 1


def explain(error: OSError, ifname: str, queue: int) -> CannotError:
    """Return what to do about a queue that could not be opened."""
    said = _one_line(str(error))
    advice = ""
    if error.errno == errno.ENODEV:
        names = ", ".join(name for _, name in socket.if_nameindex())
        advice = f"the interfaces here: {names}"
    elif error.errno in (errno.EPERM, errno.EACCES):
        advice = "run it as root, or without IFACE to see it on the loopback NIC"
    elif error.errno in (errno.EBUSY, errno.EEXIST):
        advice = f"stop the other program (ip link show {ifname} names its XDP program), or take another --queue"
    elif error.errno == errno.EINVAL:
        queues = nr_queues(ifname)
        if queues is not None and queue >= queues:
            return CannotError(f"{ifname} has no queue {queue}: take --queue {_range(queues)}")
    elif error.errno == errno.ENETDOWN:
        advice = f"ip link set {ifname} up"
    return CannotError(f"{said}: {advice}" if advice else said)


def nr_queues(ifname: str) -> int | None:
    """Return how many receive queues an interface has, None where the system does not say."""
    try:
        return sum(name.startswith("rx-") for name in os.listdir(f"/sys/class/net/{ifname}/queues"))
    except OSError:
        return None


def _range(queues: int) -> str:
    return "0" if queues == 1 else f"0 to {queues - 1}"


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())

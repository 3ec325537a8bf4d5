# SPDX-License-Identifier: MIT
"""What to tell the user about an error, in one line that says what to do.

Only words. Errors that this package raises on purpose have them; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import socket
import struct
from fcntl import ioctl

from pagepool.drivers.af_xdp import FilterError, ObjectFileError, nr_rx_queues
from pagepool.errors import PagePoolError

__all__ = ["CannotError", "UsageError", "cannot_write", "explain", "failure_line", "is_up"]

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1


class CannotError(Exception):
    """Something asked for on the command line cannot be done; the text is the line to print."""


class UsageError(CannotError):
    """The command line makes no sense, here or anywhere."""


def failure_line(error: Exception) -> tuple[str | None, int]:
    """Return the line and the exit status for an error; None for the line if it is a bug."""
    message = getattr(error, "format_message", None)
    if message is not None:  # click's own: a wrong command line (typer brings its own copy of click)
        text = message() or "no subcommand"
        return f"{_one_line(text)} (try: pagepool --help)", 2
    # Of two signals at once the second may find Event.wait taking its lock back, which then was never taken.
    again = isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt)
    if again or type(error).__name__ == "Abort":  # what click makes of Ctrl-C
        return "interrupted", 130
    if hasattr(error, "exit_code"):
        return "", int(error.exit_code)
    if isinstance(error, UsageError):
        return f"{_one_line(str(error))} (try: pagepool rx --help)", 2
    if isinstance(error, FilterError):
        return f"{_one_line(str(error))}; for example --filter 'udp port 53'", 1
    if isinstance(error, (CannotError, ObjectFileError, OSError, PagePoolError)):
        return _one_line(str(error)), 1
    return None, 1


def explain(error: OSError, ifname: str, queue: int) -> CannotError:
    """Return what to do about a queue that could not be opened."""
    said = _one_line(str(error))
    advice = ""
    if "verifier: " in said:  # what is wrong is in the program, whatever the errno
        return CannotError(said)
    if error.errno == errno.ENODEV:
        names = ", ".join(name for _, name in socket.if_nameindex())
        advice = f"the interfaces here: {names}"
    elif error.errno in (errno.EPERM, errno.EACCES):
        advice = "run it as root, or without IFACE to see it on the loopback NIC"
    elif error.errno in (errno.EBUSY, errno.EEXIST):
        name = errno.errorcode[error.errno]
        if getattr(error, "call", "").startswith("attach"):
            what, who = f"{ifname} has an XDP program already", f"ip link show {ifname} names it"
        else:
            what, who = f"{ifname} queue {queue} is another socket's", "ss --xdp -p names it"
        return CannotError(f"{what} ({name}): stop the other program ({who})")
    elif error.errno == errno.EINVAL:
        queues = nr_rx_queues(ifname)
        if queue >= queues:
            return CannotError(f"{ifname} has no queue {queue}: take --queue {_range(queues)}")
        advice = "--queue 0 is there on every interface"
    elif error.errno == errno.ENETDOWN:
        advice = f"ip link set {ifname} up"
    return CannotError(f"{said}: {advice}" if advice else said)


def cannot_write(path: str, error: OSError) -> CannotError:
    """Return what to say about a file that could not be made or written to."""
    return CannotError(f"cannot write {path}: {error.strerror or error}")


def is_up(ifname: str) -> bool:
    """Return whether an interface is up; a socket can be bound to one that is not, and hears nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = ioctl(control, _SIOCGIFFLAGS, struct.pack("=16s24x", ifname.encode()))
    return bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_UP)


def _range(queues: int) -> str:
    return "0" if queues == 1 else f"0 to {queues - 1}"


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())

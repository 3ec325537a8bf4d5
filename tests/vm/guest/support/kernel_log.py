# SPDX-License-Identifier: MIT
"""The kernel's log: rate limited, so good for "at least one"; the host's counts say "how many"."""

from __future__ import annotations

import os


def kernel_log() -> list[str]:
    """Return all messages in the kernel's buffer, oldest first, without their prefixes."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines = []
    try:
        while True:
            lines.append(os.read(fd, 8192).decode(errors="replace").partition(";")[2].split("\n")[0])
    except BlockingIOError:
        return lines
    finally:
        os.close(fd)

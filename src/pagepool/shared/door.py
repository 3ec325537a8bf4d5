# SPDX-License-Identifier: MIT
"""The socket at a path where consumers come.

Nobody is let in here. Invariant: a path that is somebody else's, a file or a socket that is listened to, is left alone.
"""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Final

__all__ = ["open_door"]

_BACKLOG: Final = 16


def open_door(path: Path, mode: int) -> socket.socket:
    """Listen at a path; the caller closes the socket and removes the path.

    Raises
    ------
    OSError
        The path is taken.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _remove_dead_socket(path)
        listener.bind(str(path))
        try:
            path.chmod(mode)  # before anybody can connect
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead_socket(path: Path) -> None:
    """Remove a socket that nobody listens to any more; leave everything else for bind(2) to refuse."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError:
        pass

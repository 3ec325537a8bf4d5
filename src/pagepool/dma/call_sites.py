# SPDX-License-Identifier: MIT
"""Which lines of the user's code made a call: frames of pagepool, of the standard library and of packages left out.

Kept raw and cheap (a few tuples) and made text only when somebody reads them. Compiled rooms have no frames.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import FrameType

__all__ = ["CallSites", "site_text", "user_call_sites"]

#: (file name, line, function), innermost first.
CallSites = tuple[tuple[str, int, str], ...]

_OURS = str(Path(__file__).resolve().parents[1]) + "/"
_PATHS = sysconfig.get_paths()
_OTHERS = tuple({_PATHS[name] + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_NOBODYS = ("<frozen ", _OURS)
_USERS, _NOBODY, _PACKAGE = range(3)
_kinds: dict[str, int] = {}  # of each file name seen so far: there are as many as modules


def user_call_sites(limit: int = 3) -> CallSites:
    """Return up to `limit` adjoining frames of the user's, innermost first.

    Where the user's code is an installed package, so that nothing else is on the stack, that counts as the user's.
    """
    found: list[tuple[str, int, str]] = []
    packaged: list[tuple[str, int, str]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < limit:
        code = frame.f_code
        name = code.co_filename
        kind = _kinds.get(name)
        if kind is None:
            kind = _kinds[name] = _kind_of(name)
        if kind == _USERS:
            found.append((name, frame.f_lineno, code.co_name))
        elif kind == _PACKAGE:
            if found:
                break
            packaged.append((name, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(found or packaged[:limit])


def _kind_of(name: str) -> int:
    if name.startswith(_NOBODYS):
        return _NOBODY
    return _PACKAGE if name.startswith(_OTHERS) else _USERS


def site_text(site: tuple[str, int, str]) -> str:
    """Return ``file:line in function``."""
    name, line, function = site
    return f"{name}:{line} in {function}"

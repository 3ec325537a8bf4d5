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


def user_call_sites(limit: int = 3) -> CallSites:
    """Return up to `limit` adjoining frames of the user's, innermost first.

    Where the user's code is an installed package, so that nothing else is on the stack, that counts as the user's.
    """
    found: list[tuple[str, int, str]] = []
    packaged: list[tuple[str, int, str]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < limit:
        name = frame.f_code.co_filename
        if name.startswith(_NOBODYS):
            pass
        elif name.startswith(_OTHERS):
            if found:
                break
            packaged.append((name, frame.f_lineno, frame.f_code.co_name))
        else:
            found.append((name, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found or packaged[:limit])


def site_text(site: tuple[str, int, str]) -> str:
    """Return ``file:line in function``."""
    name, line, function = site
    return f"{name}:{line} in {function}"

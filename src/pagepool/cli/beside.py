# SPDX-License-Identifier: MIT
"""A file that stands under its name when it is whole, and not before.

Until then it lies beside, as ``.NAME.XXXX.part``: for formats that cannot be read without their end. Invariant: what
stood under the name is there until the moment when the new file takes its place; what cannot be replaced (a pipe,
``/dev/full``) is written to as it is.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import BinaryIO

__all__ = ["FileBeside"]


class FileBeside:
    """A file in the making.

    Parameters
    ----------
    path : str
        Its name at the end; a symbolic link stays one.

    Attributes
    ----------
    file : binary file
        To be written to, and not to be closed.

    Raises
    ------
    OSError
        As the file system does.
    """

    def __init__(self, path: str) -> None:
        self._target = os.path.realpath(path)
        self._beside: str | None = None
        if _is_replaceable(self._target):
            folder, name = os.path.split(self._target)
            self._beside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        self.file: BinaryIO = open(self._beside or self._target, "wb" if self._beside is None else "xb")  # noqa: SIM115

    def keep(self) -> None:
        """Close the file and give it its name.

        Raises
        ------
        OSError
            There was no room; then it is gone.
        """
        try:
            self.file.close()
            if self._beside is not None:
                os.replace(self._beside, self._target)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close the file and remove it. Idempotent."""
        try:
            self.file.close()
        except OSError:  # what it could not write nobody will read
            pass
        if self._beside is not None:
            try:
                os.unlink(self._beside)
            except FileNotFoundError:
                pass


def _is_replaceable(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True

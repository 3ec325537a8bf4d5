# SPDX-License-Identifier: MIT
"""What the caller asked for and where the run takes place; every scenario gets one."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from benchmarks.quiet import Quiet

__all__ = ["Setting"]


@dataclass
class Setting:
    """The run.

    Attributes
    ----------
    where : Quiet
        CPUs.
    quick : bool
        Fewer and shorter rounds: for trying things, not for figures.
    peers : bool
        Build and run peers that need other people's libraries.
    notes : list of str
        What a reader of the table must know; scenarios add to it.
    """

    where: Quiet
    quick: bool = False
    peers: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return 5 if self.quick else 31

    @property
    def sample_ms(self) -> float:
        return 1.0 if self.quick else 6.0

    @property
    def passes(self) -> int:
        return 1 if self.quick else 7

    @property
    def receive_s(self) -> float:
        return 0.4 if self.quick else 1.5

    @staticmethod
    def progress(text: str) -> None:
        """Tell somebody who watches what is being done."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

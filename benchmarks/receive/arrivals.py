# SPDX-License-Identifier: MIT
"""Count in the kernel what arrives at an interface, and drop it there: the cheapest end of a wire there is.

No socket and no packet buffer: an XDP program of five instructions. It goes with the object.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Self

from pagepool.drivers.af_xdp.assembler import Assembler, R
from pagepool.drivers.af_xdp.bpf import ArrayMap
from pagepool.drivers.af_xdp.bpf_program import XdpLink, XdpProgram
from pagepool.xdp import XdpAction

__all__ = ["Arrivals"]


class Arrivals:
    """A counter on an interface of the calling thread's network namespace."""

    def __init__(self, ifname: str) -> None:
        self._count = ArrayMap(1, "pp_bench")
        asm = Assembler()
        asm.load_map_value(R.R2, self._count.fileno())
        asm.alu(R.R1, "=", 1)
        asm.fetch_add(R.R2, 0, R.R1)
        asm.alu(R.R0, "=", int(XdpAction.DROP))
        asm.exit()
        with ExitStack() as undo:
            program = undo.enter_context(XdpProgram(asm.code(), "pp_drop"))
            undo.enter_context(XdpLink(program, socket.if_nametoindex(ifname)))
            self._undo = undo.pop_all()

    @property
    def frames(self) -> int:
        """int : arrived so far."""
        return int(self._count[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

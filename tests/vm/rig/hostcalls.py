# SPDX-License-Identifier: MIT
"""What a suite in the guest may ask of the host; the guest's side of it is ``guest/support/host.py``.

Each public method of `HostCalls` is one question: its arguments come from the guest, its result goes back as
JSON.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .borrower import borrow
from .crossing import cross
from .frames import FramePort

MAX_SHARED_BYTES = 1024  # an answer must fit the guest's serial buffer


class HostCalls:
    """Answers the guest's questions.

    Parameters
    ----------
    ports : dict of FramePort
        The cables, by the NIC's name.
    trace : Path
        QEMU's trace file: one line per event.
    fault_event : str
        Trace event for an access that the IOMMU refused.
    shared : FileIO
        The file behind the shared memory, which may be closed under a call that has taken too long: it gets an error.
    """

    def __init__(self, ports: dict[str, FramePort], trace: Path, fault_event: str, shared: io.FileIO) -> None:
        self._ports = ports
        self._trace = trace
        self._fault_event = fault_event
        self._shared = shared

    def answer(self, question: str, reply: Callable[[str], None]) -> None:
        """Answer one question in a thread of its own, since frames take their time; ``reply`` gets a line."""
        threading.Thread(target=self._answer, args=(question, reply), daemon=True).start()

    def _answer(self, question: str, reply: Callable[[str], None]) -> None:
        asked = json.loads(question)
        answer: dict[str, Any] = {"key": asked["key"]}
        try:
            if asked["call"].startswith("_"):
                raise AttributeError(f"no call {asked['call']}")
            answer["result"] = getattr(self, asked["call"])(**asked["arguments"])
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        reply(json.dumps(answer))

    def inject(self, nic: str, **how: int) -> dict[str, float]:
        """Send frames and check their echoes."""
        return self._ports[nic].inject(**how)

    def send(self, nic: str, **how: int) -> dict[str, float]:
        """Send frames and expect nothing."""
        return self._ports[nic].send(**how)

    def expect(self, nic: str, **how: int) -> dict[str, float]:
        """Check frames that the guest made."""
        return self._ports[nic].expect(**how)

    def cross(self, a: str, b: str, **how: int) -> dict[str, float]:
        """Send frames into each of two NICs and check what comes out of the other."""
        return cross(self._ports[a], self._ports[b], **how)

    def iommu_faults(self) -> dict[str, int]:
        """Count refused accesses."""
        return {"count": self._count(self._fault_event)}

    def iotlb_invalidations(self) -> dict[str, int]:
        """Count IOTLB invalidations."""
        return {"count": self._count("vtd_inv_desc_iotlb")}

    def read_shared(self, offset: int, size_bytes: int) -> dict[str, str]:
        """Read the shared memory."""
        if size_bytes > MAX_SHARED_BYTES:
            raise ValueError(f"{size_bytes} bytes asked, at most {MAX_SHARED_BYTES}")
        return {"hex": os.pread(self._shared.fileno(), size_bytes, offset).hex()}

    def write_shared(self, offset: int, hex: str) -> dict[str, int]:
        """Write the shared memory."""
        return {"written": os.pwrite(self._shared.fileno(), bytes.fromhex(hex), offset)}

    def borrow(self, arena_bytes: int, rings_at: int, count: int, timeout_s: float) -> dict[str, Any]:
        """Be a consumer of the guest's pool: take `count` frames from the rings in the shared memory, give them back.

        The first `arena_bytes` are the arena, mapped for reading; the rings are at byte `rings_at`. Answers with the
        CRC of each frame, in order.
        """
        return borrow(self._shared, arena_bytes, rings_at, count, timeout_s)

    def _count(self, event: str) -> int:
        """Count the lines of the trace that name an event starting with ``event``."""
        if not self._trace.exists():
            return 0
        return sum(event in line for line in self._trace.read_text(errors="replace").splitlines())

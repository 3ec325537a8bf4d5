# SPDX-License-Identifier: MIT
"""What a shared pool counts: data, no behaviour."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pagepool.shared.consumer import ConsumerStats

__all__ = ["SharedStats"]


@dataclass(frozen=True, slots=True)
class SharedStats:
    """Figures of one `SharedPool`.

    Attributes
    ----------
    attached, refused : int
        Consumers that ever came, visitors that were sent away; `last_refusal` says why the last was.
    lost : int
        Pages that were taken back from consumers which ended or were revoked before giving them back.
    shared, quarantined : int
        Pages with consumers now; those of them that wait for the end of a process.
    rejected : int
        Pages given to `send` that were not the caller's to lend.
    foreign : int
        Redirected frames of another arena, or after `close`.
    consumers : dict of str to ConsumerStats
        By name and pid, those that are attached.
    """

    attached: int
    refused: int
    last_refusal: str
    lost: int
    shared: int
    quarantined: int
    rejected: int
    foreign: int
    consumers: dict[str, ConsumerStats]

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name."""
        return asdict(self)

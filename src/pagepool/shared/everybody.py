# SPDX-License-Identifier: MIT
"""What is done with all consumers of a pool at once: their figures, and the end.

Not their list, which is `SharedPool.consumers`. Invariant: what one of them raises keeps nothing from the others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagepool.shared.consumer import Consumer, ConsumerStats

__all__ = ["figures_by_name", "hang_up_on", "wait_for_pages"]


def figures_by_name(consumers: tuple[Consumer, ...]) -> dict[str, ConsumerStats]:
    """Figures of each; one process may be several consumers, which are numbered then."""
    found: dict[str, ConsumerStats] = {}
    for consumer in consumers:
        name = known = str(consumer.peer)
        count = 1
        while known in found:
            count += 1
            known = f"{name} #{count}"
        found[known] = consumer.stats()
    return found


def wait_for_pages(consumers: tuple[Consumer, ...], seconds: float) -> None:
    """Bring home what they give back, until they have nothing or the time is over."""
    deadline = time.monotonic() + seconds
    while any(consumer.link.outstanding for consumer in consumers) and time.monotonic() < deadline:
        if not sum(consumer.link.reap() for consumer in consumers):
            time.sleep(0.001)


def hang_up_on(consumers: tuple[Consumer, ...]) -> None:
    """End every connection; what a device raised when pages came home, the first of it, is raised at last."""
    failed: BaseException | None = None
    for consumer in consumers:
        try:
            consumer.hung_up()
        except BaseException as error:
            failed = failed or error
    if failed is not None:
        raise failed

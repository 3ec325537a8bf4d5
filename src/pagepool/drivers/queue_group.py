# SPDX-License-Identifier: MIT
"""Queues that were opened together and are closed together.

A list and an end, no more: who polls which queue is said elsewhere. Invariant: after `close` every queue has been asked
to close, also where one of them refused; the first refusal is raised.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self, TypeVar

from pagepool.drivers.rx_queue import RxQueue

__all__ = ["QueueGroup"]

Q = TypeVar("Q", bound=RxQueue)


class QueueGroup(list[Q]):
    """Open queues, in the order asked for; a list, and a context manager.

    Notes
    -----
    A queue of it may be closed alone, in any order: closing is idempotent.
    """

    def close(self) -> None:
        """Close every queue, the last opened first. Idempotent.

        Raises
        ------
        PoolBusyError
            Another thread polls one of them; the others are closed.

        Notes
        -----
        Context: no thread polls any of them any more, see `pagepool.drivers.queue_threads`.
        """
        with ExitStack() as every:
            for queue in self:
                every.callback(queue.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

# SPDX-License-Identifier: MIT
"""The pages of one process in others: a pool lends, consumers borrow, no byte is copied.

The lending side (`SharedPool`) joins `memory` and the books over `_core`; the borrowing side (`attach`) is a receive
queue like those of `drivers`. See ``docs/sharing.md`` for who owns what, and what a consumer can and cannot do.
"""

from pagepool.shared._borrower import BorrowedPage, SharedRingError
from pagepool.shared.attach import attach
from pagepool.shared.attached_queue import AttachedQueue, AttachedStats, RevokedError, SharedBatch
from pagepool.shared.consumer import Consumer, ConsumerState, ConsumerStats, SharedHolder
from pagepool.shared.shared_pool import SharedPool
from pagepool.shared.shared_stats import SharedStats
from pagepool.shared.wire import HandshakeError

__all__ = [
    "AttachedQueue",
    "AttachedStats",
    "BorrowedPage",
    "Consumer",
    "ConsumerState",
    "ConsumerStats",
    "HandshakeError",
    "RevokedError",
    "SharedBatch",
    "SharedHolder",
    "SharedPool",
    "SharedRingError",
    "SharedStats",
    "attach",
]

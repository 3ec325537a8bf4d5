# SPDX-License-Identifier: MIT
"""Open several AF_XDP queues over one memory: of one interface, or of several.

One UMEM for all, large enough for all, and for each queue a pool and a NAPI instance of its own; so a frame goes from
one queue to another by its id. Invariant: it returns every queue that was asked for, or raises and leaves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagepool.drivers.af_xdp.channels import nr_rx_queues
from pagepool.drivers.af_xdp.queue import AfXdpQueue, pages_for_queue
from pagepool.drivers.queue_group import QueueGroup

__all__ = ["open_queues"]


def open_queues(
    ifnames: str | Sequence[str],
    queues: Sequence[int] | None = None,
    *,
    frames: int | None = None,
    share_umem_with: AfXdpQueue | None = None,
    **options: Any,
) -> QueueGroup[AfXdpQueue]:
    """Open queues that share one UMEM, each with a pool of its own.

    Parameters
    ----------
    ifnames : str or sequence of str
        Interfaces, in the calling thread's network namespace.
    queues : sequence of int, optional
        Queues of each interface; all that it has by default.
    frames : int, optional
        Pages of 4096 bytes in the UMEM, for all queues together. By default what the rings of all of them can hold,
        and 512 more for each.
    share_umem_with : AfXdpQueue, optional
        An open queue whose memory to use instead of making one. It must have been made large enough (`frames`).
    **options
        Any other option of `AfXdpQueue`, the same for all.

    Returns
    -------
    QueueGroup of AfXdpQueue
        A list, interface by interface, in the order of `queues`; a context manager that closes them all.

    Raises
    ------
    DeviceError
        The kernel's refusal, with the queue that it is about; none is left open.
    ValueError
        No queue, or one asked for twice.

    Notes
    -----
    Closed in any order; memory and program go with the last. A queue may be opened beside others that are polled.

    Context: any thread. Each queue belongs to the thread that first polls it.
    """
    names = [ifnames] if isinstance(ifnames, str) else list(ifnames)
    asked = [(name, queue) for name in names for queue in (range(nr_rx_queues(name)) if queues is None else queues)]
    if not asked:
        raise ValueError("no queue to open: name an interface, and at least one queue")
    if len(set(asked)) < len(asked):
        raise ValueError(f"a queue is asked for twice: {', '.join(f'{name} queue {queue}' for name, queue in asked)}")
    if share_umem_with is not None and frames is not None:
        raise ValueError("frames belongs to the queue that makes the memory, and share_umem_with has made it")
    if frames is None:
        frames = len(asked) * pages_for_queue(options.get("rx_ring"), options.get("tx_ring"))
    opened: QueueGroup[AfXdpQueue] = QueueGroup()
    try:
        for name, queue in asked:
            owner = share_umem_with or (opened[0] if opened else None)
            opened.append(AfXdpQueue(name, queue, frames=frames, share_umem_with=owner, **options))
    except BaseException:
        opened.close()
        raise
    return opened

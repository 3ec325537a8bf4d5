# SPDX-License-Identifier: MIT
"""What the same frames would cost without a pool, each operation timed here and now.

An estimate and nothing more: the median time of one operation on this machine, in this process, right after the
run; the reader multiplies by frames. It keeps nothing it makes.
"""

from __future__ import annotations

import mmap
import statistics
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pagepool import DmaDir, PagePool
from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.drivers.af_xdp.socket import XdpSocket
from pagepool.drivers.rx_queue import RxQueue

__all__ = ["Cost", "Costs", "measure"]

_REPEATS = 300
_PAGE = 4096
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """One operation.

    Attributes
    ----------
    what : str
        The operation, in words.
    ns : float
        Median nanoseconds of one.
    repeats : int
        How often it was timed.
    """

    what: str
    ns: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Costs:
    """The operations side by side.

    Attributes
    ----------
    pool : Cost
        A page out of a pool and back, in batches of 64.
    page : Cost
        A page from the kernel and back.
    buffer : Cost
        A fresh buffer from Python's allocator.
    mapping : Cost or None
        Mapping one page for the device of the run; None where that could not be timed.
    """

    pool: Cost
    page: Cost
    buffer: Cost
    mapping: Cost | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def measure(queue: RxQueue) -> Costs:
    """Time all of them; some 50 ms.

    Parameters
    ----------
    queue : RxQueue
        Whose device is the one to map for. It is not touched.
    """
    return Costs(
        pool=_pool(),
        page=_time("mmap+touch+munmap", _new_page),
        buffer=_time("bytearray(4096)", _new_buffer),
        mapping=_xsk_mapping() if isinstance(queue, AfXdpQueue) else _device_mapping(queue.pool.params.dev),
    )


def _time(what: str, operation: Callable[[], object], scale: int = 1) -> Cost:
    clock, spans = time.perf_counter_ns, []
    for _ in range(_REPEATS):
        start = clock()
        operation()
        spans.append(clock() - start)
    return Cost(what, statistics.median(spans) / scale, _REPEATS)


def _new_page() -> None:
    with mmap.mmap(-1, _PAGE) as page:
        page[0] = 1


def _new_buffer() -> bytearray:
    return bytearray(_PAGE)


def _pool() -> Cost:
    with PagePool() as pool:
        ids = array("I", bytes(4 * _BATCH))

        def round_trip() -> None:
            pool.alloc_bulk(ids)
            pool.put_bulk(ids)

        return _time("alloc_bulk+put_bulk of 64, for each", round_trip, _BATCH)


def _device_mapping(dev: Any) -> Cost:
    with PagePool() as pool, pool.alloc_pages() as page:
        vaddr = page.vaddr

        def round_trip() -> None:
            dev.unmap(dev.map(vaddr, _PAGE, DmaDir.BIDIRECTIONAL), _PAGE, DmaDir.BIDIRECTIONAL)

        return _time("map+unmap", round_trip)


def _xsk_mapping() -> Cost | None:
    # Registering needs a socket of its own each time, so the socket's cost is taken off again.
    with PagePool() as pool, pool.alloc_pages() as page:
        vaddr = page.vaddr

        def register() -> None:
            with XdpSocket("a page") as sock:
                sock.register_umem(vaddr, _PAGE)

        def empty() -> None:
            XdpSocket("a page").close()

        try:
            with_umem, without = _time("", register), _time("", empty)
        except OSError:
            return None
    return Cost("register as UMEM", max(with_umem.ns - without.ns, 0.0), _REPEATS)

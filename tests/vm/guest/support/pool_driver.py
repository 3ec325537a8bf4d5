# SPDX-License-Identifier: MIT
"""Drives real page pools, call by call, through the kernel module ``pool_driver``; keeps what was done as a recording.

Every method of `DrivenPool` makes one call on the kernel's pool and appends it to `DrivenPool.calls` with what was
seen of the pool and asked of its device, in the format of `pagepool.testing.recording`. Which calls to make is the
test's: what the pool decided comes back as the method's result.

*The consumer* is the poll of the module's NAPI; *elsewhere* is a process, or a softirq that is in no poll, on any CPU.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import platform
import time
from typing import Any

from pagepool.testing.recording import DRIVEN, Recording

from . import modules

IN_PROCESS, IN_SOFTIRQ, IN_POLL = range(3)
What = enum.IntEnum(
    "What",
    "LOOK ALLOC_PAGES ALLOC_FRAG ALLOC ALLOC_VA PUT_PAGE PUT_FULL_PAGE RECYCLE_DIRECT FREE_VA PUT_BULK GET_PAGE "
    "DROP_PAGE FRAGMENT REF UNREF SYNC_FOR_CPU_OF UPDATE_NID NID_CHANGED ENABLE_DIRECT DISABLE_DIRECT GET_USER DESTROY "
    "FAIL_MAP HOG",
    start=0,
)
DIRECT, EMERGENCY = 1, 2
POOLS, BULK_MOST, BULK_QUEUE = 4, 64, 16  # BULK_QUEUE: pages of one pool that page_pool_put_netmem_bulk takes
DMA_KINDS = ("map", "map_failed", "unmap", "sync_for_device", "sync_for_cpu")
COUNTERS = (*DRIVEN[:6], *DRIVEN[-5:])  # in the order of struct page_pool_stats
LATE_SECONDS = 5.0  # a destroyed pool looks after its ring every second


class _Figures(ctypes.Structure):
    _fields_ = [
        ("counters", ctypes.c_uint64 * 11),
        *((name, ctypes.c_uint32) for name in ("in_cache", "in_ring", "room", "hold_cnt", "release_cnt", "users")),
        ("nid", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


class _Named(ctypes.Structure):
    _fields_ = [("pool", ctypes.c_uint32), ("page", ctypes.c_uint32)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("what", "where", "pool", "page")),
        ("value", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("flags", "offset", "size", "count", "cpu")),
        ("bulk", _Named * BULK_MOST),
        ("figures", _Figures),
    ]


class _Params(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("pool", "order", "pool_size")),
        ("nid", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("flags", "dma_dir", "max_len", "offset", "dev", "napi")),
    ]


class _DmaEvent(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("kind", "pool", "page", "offset", "size", "dma_dir")]


POOL_CREATE = 1 << 30 | ctypes.sizeof(_Params) << 16 | ord("p") << 8 | 1
POOL_CALL = 3 << 30 | ctypes.sizeof(_Call) << 16 | ord("p") << 8 | 2


class PoolDriver:
    """The module, with a NAPI and a device of its own; a context manager that gives everything back."""

    def __init__(self) -> None:
        modules.load("pool_driver")
        self._fd = os.open("/dev/pool_driver", os.O_RDWR)
        self._cpu = -1

    def __enter__(self) -> PoolDriver:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def create(self, index: int = 0, **params: int) -> DrivenPool:
        """Make pool `index`, with the parameters of `Recording.params`.

        Raises
        ------
        OSError
            With the errno of ``page_pool_create``; ENXIO for what the module refuses to try.
        """
        given = {"order": 0, "pool_size": 0, "nid": -1, "flags": 0, "dma_dir": 0, "max_len": 0, "offset": 0, "napi": 1}
        given |= params
        fcntl.ioctl(self._fd, POOL_CREATE, _Params(pool=index, dev=given["flags"] & 1, **given))
        return DrivenPool(self, index, given)

    def call(self, what: str, *, cpu: int = -1, **fields: Any) -> _Call:
        """Make one call, on `cpu` if it is not -1.

        Raises
        ------
        OSError
            The module refused it, or the pool had no page.
        """
        if cpu not in (-1, self._cpu):
            os.sched_setaffinity(0, {cpu})
            self._cpu = cpu
        bulk = fields.pop("bulk", ())
        call = _Call(what=What[what], count=len(bulk), **fields)
        for at, (pool, page) in enumerate(bulk):
            call.bulk[at].pool, call.bulk[at].page = pool, page
        fcntl.ioctl(self._fd, POOL_CALL, call, True)
        return call

    def dma_events(self) -> list[tuple[int, list[Any]]]:
        """Return what the device was asked since the last time: pool, and ``[op, page, offset, size]``."""
        content = os.read(self._fd, 4096 * ctypes.sizeof(_DmaEvent))
        events = (_DmaEvent * (len(content) // ctypes.sizeof(_DmaEvent))).from_buffer_copy(content)
        return [(e.pool, [DMA_KINDS[e.kind], _page_of(e), e.offset, e.size]) for e in events]

    def hog(self, nid: int) -> None:
        """Take all memory of a node but what is kept for emergencies; -1 gives it back."""
        self.call("HOG", value=nid)

    def put_bulk(self, pages: list[tuple[DrivenPool, int]], *, consumer: bool, cpu: int = 0) -> None:
        """Put whole pages of several pools with one call: at most 16 of each."""
        bulk = [(pool.index, page) for pool, page in pages]
        where = IN_POLL if consumer else IN_PROCESS
        self.call("PUT_BULK", cpu=cpu, where=where, pool=pages[0][0].index, bulk=bulk)
        events = self.dma_events()
        for pool in dict(pages):
            own = [page for other, page in pages if other is pool]
            dma = [event for index, event in events if index == pool.index]
            pool.note("bulk", {"cpu": cpu, "consumer": int(consumer), "pages": own}, None, dma)


class DrivenPool:
    """One of the kernel's pools, and all that was done with it.

    Attributes
    ----------
    calls : list of dict
        As in a `Recording`.
    """

    def __init__(self, driver: PoolDriver, index: int, params: dict[str, int]) -> None:
        self.driver, self.index, self.params = driver, index, params
        self.calls: list[dict[str, Any]] = []
        self.destroyed = self.gone = False
        self._users = 1
        self._last = self.figures()
        self.ring_size = self._last["room"]

    def figures(self) -> dict[str, int]:
        """What is seen of the pool now; `room` is how many pages its ring would take. All 0 when it is gone."""
        try:
            return _figures(self.driver.call("LOOK", pool=self.index))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return _figures(_Call())

    def recording(self, workload: str) -> Recording:
        """Everything so far."""
        kept = {name: value for name, value in self.params.items() if value or name in ("nid", "napi", "pool_size")}
        return Recording(platform.release(), workload, kept, self.calls, driven=True)

    # -- taking --------------------------------------------------------------------------------------------------

    def take(self, size: int = 0, *, rest: bool = False, va: bool = False, cpu: int = 0) -> tuple[int, int, int]:
        """Take a whole page, or with `size` a part of one: return (page, offset, length), page 0 if there is none.

        ``page_pool_alloc_pages``, ``page_pool_alloc_frag``, with `rest` ``page_pool_alloc`` or with `va` too
        ``page_pool_alloc_va``.
        """
        what = "ALLOC_PAGES" if not size else "ALLOC_FRAG" if not rest else "ALLOC_VA" if va else "ALLOC"
        try:
            call = self._call(what, cpu=cpu, where=IN_POLL, size=size)
            found = (call.page, call.offset, call.size or 4096 << self.params["order"])
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            call, found = None, (0, 0, 0)
        results = dict(zip(("page", "offset", "length"), found, strict=True))
        self.note("take", {"cpu": cpu, "size": size, "rest": int(rest), **results}, call)
        return found

    def take_reserve(self, *, cpu: int) -> int:
        """Take a page out of the emergency reserve, while `PoolDriver.hog` has the node of `cpu`."""
        call = self._call("ALLOC_PAGES", cpu=cpu, where=IN_POLL, flags=EMERGENCY)
        if not call.flags & EMERGENCY:
            raise RuntimeError(f"page {call.page} is an ordinary one")
        self.note("reserve", {"cpu": cpu, "page": call.page}, call)
        return call.page

    # -- giving --------------------------------------------------------------------------------------------------

    def give(
        self,
        page: int,
        offset: int = 0,
        *,
        consumer: bool = True,
        direct: bool = False,
        sync_bytes: int = -1,
        cpu: int = 0,
        softirq: bool = False,
        what: str = "PUT_PAGE",
    ) -> None:
        """Put one reference; `what` may be any of the functions that do so."""
        where = IN_POLL if consumer else IN_SOFTIRQ if softirq else IN_PROCESS
        fields = {"page": page, "offset": offset, "value": sync_bytes, "flags": DIRECT if direct else 0}
        call = self._call(what, cpu=cpu, where=where, **fields)
        inputs = {"cpu": cpu, "consumer": int(consumer), "page": page, "offset": offset}
        self.note("give", inputs | {"sync_bytes": sync_bytes, "direct": int(direct)}, call)

    def recycle_direct(self, page: int, offset: int = 0) -> None:
        """``page_pool_recycle_direct``."""
        self.give(page, offset, direct=True, what="RECYCLE_DIRECT")

    def bulk(self, pages: list[int], *, consumer: bool = True, cpu: int = 0) -> None:
        """``page_pool_put_netmem_bulk`` of at most 16 pages of this pool."""
        self.driver.put_bulk([(self, page) for page in pages], consumer=consumer, cpu=cpu)

    def unref(self, page: int, count: int, *, consumer: bool = True, cpu: int = 0) -> None:
        """Drop references at once, as a driver that has split the page does."""
        where = IN_POLL if consumer else IN_PROCESS
        call = self._call("UNREF", cpu=cpu, where=where, page=page, value=count)
        self.note("unref", {"cpu": cpu, "consumer": int(consumer), "page": page, "count": count}, call)

    # -- all else ------------------------------------------------------------------------------------------------

    def get(self, page: int) -> None:
        """``get_page``: another holder."""
        self.note("get", {"page": page}, self._call("GET_PAGE", page=page))

    def drop(self, page: int) -> None:
        """``put_page``: he goes."""
        self.note("drop", {"page": page}, self._call("DROP_PAGE", page=page))

    def ref(self, page: int, count: int, *, fragment: bool = False) -> None:
        """``page_pool_ref_page`` so many times, or ``page_pool_fragment_page`` into so many and one."""
        what, value = ("FRAGMENT", count + 1) if fragment else ("REF", count)
        self.note("ref", {"page": page, "count": count}, self._call(what, page=page, value=value))

    def sync_for_cpu(self, page: int, offset: int, size: int) -> None:
        """``page_pool_dma_sync_for_cpu``."""
        call = self._call("SYNC_FOR_CPU_OF", page=page, offset=offset, size=size)
        self.note("sync_cpu", {"page": page, "offset": offset, "size": size}, call)

    def update_nid(self, nid: int, *, if_changed: bool = False, cpu: int = 0) -> None:
        """``page_pool_update_nid``, or ``page_pool_nid_changed``."""
        what = "NID_CHANGED" if if_changed else "UPDATE_NID"
        call = self._call(what, cpu=cpu, where=IN_POLL, value=nid)
        self.note("nid", {"cpu": cpu, "nid": nid, "if_changed": int(if_changed)}, call)

    def auto_direct(self, on: bool) -> None:
        """``page_pool_enable_direct_recycling``, or its counterpart."""
        self.note("auto_direct", {"on": int(on)}, self._call("ENABLE_DIRECT" if on else "DISABLE_DIRECT"))

    def fail_map(self, at: int) -> None:
        """Let the device refuse a map: the next one is 1."""
        self.note("fail_map", {"at": at}, self._call("FAIL_MAP", value=at))

    def user(self) -> None:
        """``page_pool_get``."""
        self._users += 1
        self.note("user", {}, self._call("GET_USER"))

    def destroy(self) -> None:
        """``page_pool_destroy``: one user goes."""
        self._users -= 1
        self.destroyed = not self._users
        self.note("destroy", {"back": 0}, self._call("DESTROY"))

    def _call(self, what: str, **fields: Any) -> _Call:
        return self.driver.call(what, pool=self.index, **fields)

    def note(self, kind: str, inputs: dict[str, Any], call: _Call | None, dma: list[list[Any]] | None = None) -> None:
        """Append a call that was made; without `call` the pool is looked at anew."""
        now = self.figures() if call is None else _figures(call)
        if self.destroyed:
            now = self._settled(now)
        if dma is None:
            dma = [event for index, event in self.driver.dma_events() if index == self.index or not event[1]]
        noted: dict[str, Any] = {"call": kind, **inputs}
        last, self._last = self._last, now
        changes = {name: now[name] - last[name] for name in DRIVEN if now[name] != last[name]}
        if kind in ("give", "bulk", "unref"):
            filled = last["in_ring"] + changes.get("ring", 0)
            noted["early"] = int("ring_full" in changes and filled < self.ring_size)
        self.gone = self.destroyed and not now["users"] and not any(now[name] for name in DRIVEN)
        noted["seen"] = None if self.gone else changes
        if dma:
            noted["dma"] = dma
        self.calls.append(noted)

    def _settled(self, now: dict[str, int]) -> dict[str, int]:
        """Wait until a destroyed pool has looked after its ring."""
        deadline = time.monotonic() + LATE_SECONDS
        while now["in_ring"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{now['in_ring']} pages are still in the ring of a destroyed pool")
            time.sleep(0.05)
            now = self.figures()
        return now


def _figures(call: _Call) -> dict[str, int]:
    figures = call.figures
    names = ("in_cache", "in_ring", "room", "hold_cnt", "release_cnt", "users", "nid")
    return dict(zip(COUNTERS, figures.counters, strict=True)) | {name: getattr(figures, name) for name in names}


def _page_of(event: _DmaEvent) -> int:
    return -1 if DMA_KINDS[event.kind] == "map_failed" else event.page

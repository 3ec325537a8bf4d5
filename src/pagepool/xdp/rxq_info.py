# SPDX-License-Identifier: MIT
"""Which receive queue a frame came from and what memory its pages are of: ``struct xdp_rxq_info``.

A record with a life cycle, not a queue. Invariant: between `reg_mem_model` with a pool and `unreg` it holds
one user reference of that pool, so the pool outlives every frame that says it came from here. Rules and error
numbers: ``net/core/xdp.c`` of Linux 6.18.
"""

from __future__ import annotations

import errno
import threading
from enum import IntEnum
from typing import Any

from pagepool.errors import DeviceError

__all__ = ["MemType", "XdpRxqError", "XdpRxqInfo"]

_MEM_ID_MIN, _MEM_ID_MAX = 1, 0xFFFD


class MemType(IntEnum):
    """``enum xdp_mem_type``: how the pages of a queue are returned."""

    PAGE_SHARED = 0
    PAGE_ORDER0 = 1
    PAGE_POOL = 2
    XSK_BUFF_POOL = 3


class XdpRxqError(DeviceError):
    """A registration was refused; `errno` is the kernel's."""


class _MemIds:
    """Memory model ids, handed out cyclically so that a stale id is not soon another queue's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = _MEM_ID_MIN
        self._used: set[int] = set()

    def get(self) -> int:
        with self._lock:
            for _ in range(_MEM_ID_MAX):
                mem_id, self._next = self._next, self._next % _MEM_ID_MAX + 1
                if mem_id not in self._used:
                    self._used.add(mem_id)
                    return mem_id
        return 0

    def put(self, mem_id: int) -> None:
        with self._lock:
            self._used.discard(mem_id)


_mem_ids = _MemIds()


class XdpRxqInfo:
    """One receive queue, as its frames know it.

    Attributes
    ----------
    netdev : str
        Interface name; empty while not registered.
    queue_index : int
        Hardware queue.
    napi_id : int
        The NAPI instance that polls it, 0 if unknown.
    mem_type : MemType
        ``PAGE_SHARED`` until a model is registered.
    mem_id : int
        1 to 65533 while an allocator is registered, else 0.

    Context: set up and torn down by one thread; readable from any.
    """

    __slots__ = ("_pool", "_registered", "mem_id", "mem_type", "napi_id", "netdev", "queue_index")

    def __init__(self) -> None:
        self._registered = False
        self._clear()

    def _clear(self) -> None:
        self.netdev = ""
        self.queue_index = 0
        self.napi_id = 0
        self._pool: Any = None
        self.mem_type = MemType.PAGE_SHARED
        self.mem_id = 0

    def __repr__(self) -> str:
        if not self._registered:
            return "<XdpRxqInfo, not registered>"
        return f"<XdpRxqInfo {self.netdev} queue {self.queue_index}, {self.mem_type.name}, mem id {self.mem_id}>"

    @property
    def is_registered(self) -> bool:
        """bool : ``xdp_rxq_info_is_reg``."""
        return self._registered

    @property
    def pool(self) -> Any:
        """PagePool or None : the pool of the memory model."""
        return self._pool

    def reg(self, netdev: str, queue_index: int, napi_id: int = 0) -> None:
        """Register the queue; ``xdp_rxq_info_reg``.

        A queue still registered is unregistered first, as in the kernel.

        Raises
        ------
        XdpRxqError
            ``ENODEV`` without a netdev, ``EINVAL`` for a negative queue or NAPI id.
        """
        if not netdev:
            raise XdpRxqError(errno.ENODEV, "xdp_rxq_info_reg", f"queue {queue_index}", "give the interface's name")
        if queue_index < 0 or napi_id < 0:
            raise XdpRxqError(errno.EINVAL, "xdp_rxq_info_reg", f"{netdev} queue {queue_index}", "ids are not negative")
        self.unreg()
        self.netdev, self.queue_index, self.napi_id = netdev, queue_index, napi_id
        self._registered = True

    def reg_mem_model(self, mem_type: MemType, allocator: Any = None) -> None:
        """Say how pages of this queue are returned; ``xdp_rxq_info_reg_mem_model``.

        Parameters
        ----------
        mem_type : MemType
            ``PAGE_POOL`` needs `allocator`.
        allocator : PagePool, optional
            One user reference of it is taken, `unreg` gives it back.

        Raises
        ------
        XdpRxqError
            ``EFAULT`` before `reg`, ``EINVAL`` for an unknown type or ``PAGE_POOL`` without a pool,
            ``EEXIST`` if a pool is registered already (the kernel would leak its reference), ``ENOSPC`` if
            all ids are taken.
        """
        call, obj = "xdp_rxq_info_reg_mem_model", f"{self.netdev or 'rxq'} queue {self.queue_index}"
        if not self._registered:
            raise XdpRxqError(errno.EFAULT, call, obj, "register the queue first")
        try:
            mem_type = MemType(mem_type)
        except ValueError:
            raise XdpRxqError(errno.EINVAL, call, obj, f"{mem_type!r} is no MemType") from None
        if self._pool is not None:
            raise XdpRxqError(errno.EEXIST, call, obj, "a pool is registered; unregister it first")
        if allocator is None:
            if mem_type is MemType.PAGE_POOL:
                raise XdpRxqError(errno.EINVAL, call, obj, "PAGE_POOL needs a pool")
            self.mem_type = mem_type
            return
        if mem_type is not MemType.PAGE_POOL or not hasattr(allocator, "get_user"):
            raise XdpRxqError(errno.EINVAL, call, obj, f"{mem_type.name} cannot take {type(allocator).__name__}")
        mem_id = _mem_ids.get()
        if mem_id == 0:
            raise XdpRxqError(errno.ENOSPC, call, obj, "65533 memory models are registered")
        try:
            allocator.get_user()
        except BaseException:
            _mem_ids.put(mem_id)
            raise
        self._pool, self.mem_id, self.mem_type = allocator, mem_id, mem_type

    def unreg_mem_model(self) -> None:
        """Give the pool's user reference back; ``xdp_rxq_info_unreg_mem_model``.

        Raises
        ------
        XdpRxqError
            ``EFAULT`` if the queue is not registered (the kernel warns).
        """
        if not self._registered:
            raise XdpRxqError(errno.EFAULT, "xdp_rxq_info_unreg_mem_model", "rxq", "register the queue first")
        pool, mem_id = self._pool, self.mem_id
        self._pool, self.mem_id, self.mem_type = None, 0, MemType.PAGE_SHARED
        if pool is not None:
            _mem_ids.put(mem_id)
            pool.put_user()

    def unreg(self) -> None:
        """Unregister the queue and its memory model; ``xdp_rxq_info_unreg``.

        Nothing happens if it is not registered.
        """
        if not self._registered:
            return
        self.unreg_mem_model()
        self._clear()
        self._registered = False

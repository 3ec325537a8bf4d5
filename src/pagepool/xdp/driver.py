# SPDX-License-Identifier: MIT
"""The two protocols around a batch: what a pool gives it and what a driver does for it.

No code, only the contract, so that `xdp` needs to know neither a device nor the compiled pool. Invariant: a
frame has one owner. What `transmit`, `pass_to_stack` or `xdp_xmit` accept is theirs; what they do not accept
still belongs to the caller, who puts it back and counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pagepool.xdp.batch import XdpBatch
    from pagepool.xdp.frame_memory import FrameMemory
    from pagepool.xdp.rxq_info import XdpRxqInfo
    from pagepool.xdp.stats import XdpStats

__all__ = ["FramePool", "RedirectTarget", "U8Array", "U32Array", "U64Array", "XdpDriver"]

U8Array = npt.NDArray[np.uint8]
U32Array = npt.NDArray[np.uint32]
U64Array = npt.NDArray[np.uint64]


class FramePool(Protocol):
    """The part of `PagePool` that this room uses."""

    @property
    def arena(self) -> Any:
        """Arena : where the pool's pages are; has ``base_vaddr`` and ``size_bytes``."""

    @property
    def params(self) -> Any:
        """PagePoolParams : only ``order`` is read."""

    def put_bulk(self, ids: Any, dma_sync_size: int = -1) -> int:
        """Put pages by id; foreign and dead ids are skipped. Return how many were put."""

    @property
    def memory(self) -> Any:
        """PageAllocator : only ``view()`` is used."""

    def page(self, id: int, offset: int = 0, length: int = -1) -> Any:
        """Return a `Page` handle that takes over the caller's ownership of `id`."""

    def lease(self, ids: Any, offset: int = 0, length: int = -1) -> Any:
        """Return a `Lease`: one more reference to each page, and a buffer over them."""

    def dma_addrs(self, ids: Any, out: Any) -> int:
        """Write the ``dma_addr`` of each page to `out`, ``(n,) uint64``; return how many."""


class RedirectTarget(Protocol):
    """What frames can be redirected to: a queue, or a consumer in another process; for the rules see `XdpDriver`."""

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Take frames of the pool `source`; return how many of the first."""


class XdpDriver(Protocol):
    """What a queue does with the frames of a batch.

    Attributes
    ----------
    name : str
        The network interface, ``"eth0"``.
    queue : int
        The hardware queue.
    pool : FramePool
        Where the pages of this queue's batches come from and go back to.
    memory : FrameMemory
        The pool's memory as arrays; one for the life of the queue.
    rxq : XdpRxqInfo
        This queue, as frames know it.
    xdp_stats : XdpStats
        Counted by `pagepool.xdp.carry_out`.
    """

    name: str
    queue: int
    pool: Any
    memory: FrameMemory
    rxq: XdpRxqInfo
    xdp_stats: XdpStats

    def transmit(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Queue frames of this queue's own pool for sending.

        Parameters
        ----------
        ids, lengths, offsets : (n,) uint32
            Page id, bytes, and bytes from the page's first byte to the frame's; checked: they lie in their
            page.

        Returns
        -------
        int
            How many of the first were accepted; 0 to n. Those belong to the driver, which puts each page back
            when it has been sent. The rest still belongs to the caller.

        Notes
        -----
        It must not raise after it has taken a frame: if it raises, it has taken none.

        Context: the queue's owner thread, inside `finish`.
        """

    def pass_to_stack(self, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Hand frames to the host's stack; the same rules as `transmit`."""

    def xdp_xmit(self, source: FramePool, ids: U32Array, lengths: U32Array, offsets: U32Array) -> int:
        """Queue frames that another queue received; the kernel's ``ndo_xdp_xmit``.

        `source` is the pool of the frames: the accepted ones go back there, never to this queue's own pool. A
        driver whose device cannot reach the memory of `source` copies and puts the page at once.

        A driver may have an ``xdp_flush()`` too, the kernel's ``xdp_do_flush``: it is called once per batch, after all
        frames of it have found their place, and may raise.

        Context: the owner thread of the *other* queue. The driver locks what it must.
        """

    def finish(self, batch: XdpBatch) -> None:
        """Carry out the verdicts.

        ``carry_out(self, batch)``, then ring the doorbells once for the whole batch.
        """

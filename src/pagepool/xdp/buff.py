# SPDX-License-Identifier: MIT
"""One frame at a time: the kernel's ``xdp_buff`` (inside a batch) and ``xdp_frame`` (out of it, on its own).

Convenience, not the fast path: each object here costs more than a frame should. Invariant: an `XdpBuff` owns
nothing, its batch does; an `XdpFrame` owns one page, from `XdpBuff.to_frame` to `XdpFrame.return_frame` or
its own end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagepool._core.tensor import array_interface
from pagepool.xdp.actions import XdpAction

if TYPE_CHECKING:
    from pagepool.xdp.batch import XdpBatch
    from pagepool.xdp.driver import XdpDriver
    from pagepool.xdp.rxq_info import XdpRxqInfo

__all__ = ["XdpBuff", "XdpFrame"]


class XdpBuff:
    """Frame `index` of a batch.

    Context: as the batch; after it is completed every use raises `DeadBatchError`.
    """

    __slots__ = ("_batch", "index")

    def __init__(self, batch: XdpBatch, index: int) -> None:
        self._batch = batch
        self.index = index

    def __repr__(self) -> str:
        return f"<XdpBuff {self.index}: page {self.page_id}, {self.data_len} bytes at {self.headroom}>"

    @property
    def data(self) -> memoryview:
        """memoryview : the frame, writable, ``(data_len,) uint8``; it does not hold the page."""
        return self._batch.frame(self.index)

    # For array libraries: each export holds the page, past the end of the batch, and leaves the verdict alone.

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return the frame as a buffer that holds its page (Python 3.12 and newer ask for it)."""
        return memoryview(self._batch.lease_frame(self.index))

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """Export the frame, ``(data_len,) uint8``, as a DLPack capsule; parameters and errors as `Page.__dlpack__`.

        Raises
        ------
        BufferError
            The frame was kept: export its `Page`.
        """
        lease = self._batch.lease_frame(self.index)
        return lease.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's type and number of the memory's device."""
        return self._batch.lease_frame(self.index).__dlpack_device__()  # type: ignore[no-any-return]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """dict : NumPy's array interface; its ``data`` holds the page."""
        return array_interface(self._batch.lease_frame(self.index))

    @property
    def data_len(self) -> int:
        """int : bytes of the frame."""
        return int(self._batch.lengths[self.index])

    @property
    def headroom(self) -> int:
        """int : bytes between the page's first byte and the frame's."""
        return int(self._batch.offsets[self.index])

    @property
    def page_id(self) -> int:
        """int : id of the page."""
        return int(self._batch.ids[self.index])

    @property
    def rxq(self) -> XdpRxqInfo:
        """XdpRxqInfo : the queue it came in on."""
        return self._batch.driver.rxq

    def adjust_head(self, delta: int) -> None:
        """Move the frame's start by `delta` bytes, see `XdpBatch.adjust_head`."""
        self._batch.adjust_head(delta, self.index)

    def adjust_tail(self, delta: int) -> None:
        """Move the frame's end by `delta` bytes, see `XdpBatch.adjust_tail`."""
        self._batch.adjust_tail(delta, self.index)

    def redirect(self, queue: XdpDriver) -> XdpAction:
        """Aim the frame at another queue and return ``XdpAction.REDIRECT``, as ``bpf_redirect_map`` does."""
        self._batch.redirect(queue, self.index)
        return XdpAction.REDIRECT

    def keep(self) -> Any:
        """Take the frame's page out of the batch, see `XdpBatch.keep`.

        Raises
        ------
        ValueError
            If it was taken before.
        """
        pages = self._batch.keep(self.index)
        if not pages:
            raise ValueError(f"frame {self.index} was kept before")
        return pages[0]

    def to_frame(self) -> XdpFrame:
        """Take the frame out of the batch as an `XdpFrame`; the kernel's ``xdp_convert_buff_to_frame``."""
        rxq = self.rxq
        return XdpFrame(self.keep(), rxq)


class XdpFrame:
    """A frame that left its batch and knows where its page belongs.

    Parameters
    ----------
    page : Page
        A handle on the frame's bytes; the frame takes it over.
    rxq : XdpRxqInfo
        The queue it came in on.

    Notes
    -----
    A frame that dies without `return_frame` returns its page all the same.

    Context: any thread.
    """

    __slots__ = ("_page", "rxq")

    def __init__(self, page: Any, rxq: XdpRxqInfo) -> None:
        self._page = page
        self.rxq = rxq

    def __len__(self) -> int:
        return len(self.data)

    @property
    def page(self) -> Any:
        """Page : the handle.

        Raises
        ------
        ValueError
            After `return_frame`.
        """
        if self._page is None:
            raise ValueError("this frame was returned: its page is used for something else by now")
        return self._page

    @property
    def data(self) -> memoryview:
        """memoryview : the frame, writable; it holds the page lent, even past `return_frame`."""
        return memoryview(self.page)

    def return_frame(self) -> None:
        """Give the page back from any thread; the kernel's ``xdp_return_frame``."""
        page, self._page = self.page, None
        page.pool.put_full_page(page)

    def return_frame_rx_napi(self) -> None:
        """Give the page back on the pool's owner thread, straight to its cache.

        ``xdp_return_frame_rx_napi``.
        """
        page, self._page = self.page, None
        page.pool.put_full_page(page, allow_direct=True)

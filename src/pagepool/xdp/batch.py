# SPDX-License-Identifier: MIT
"""The frames of one poll, still in DMA memory, and a verdict for each.

A batch moves no bytes and makes no object per frame unless asked to. It is not a queue: it lives from one
poll to the next. Invariant: from construction to `complete` it owns every page in `ids` that has not been
kept; `complete` runs once, by `with`, by the queue's next poll, or when the batch dies, and leaves it owning
none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pagepool._core.tensor import CPU_DEVICE
from pagepool.xdp.actions import XdpAction
from pagepool.xdp.buff import XdpBuff
from pagepool.xdp.driver import RedirectTarget, U8Array, U32Array, XdpDriver
from pagepool.xdp.frame_set import FrameSet

__all__ = ["XdpBatch"]

_DROP, _PASS, _TX = int(XdpAction.DROP), int(XdpAction.PASS), int(XdpAction.TX)
_REDIRECT, _NONE = int(XdpAction.REDIRECT), int(XdpAction.NONE)
_ALL = slice(None)


class XdpBatch(FrameSet):
    """Up to `budget` frames of one receive queue.

    Parameters
    ----------
    driver : XdpDriver
        The queue; its `finish` carries the verdicts out.
    ids : (n,) uint32
        Page of each frame. The batch takes over the pages and makes the array read-only.
    lengths : (n,) uint32
        Bytes of each frame.
    offsets : int or (n,) uint32
        Bytes from the first byte of a page to the frame's; an int where all are the same, which is faster.

    Attributes
    ----------
    ids, lengths : (n,) uint32
        As given.

    Notes
    -----
    Verdict calls take a `mask`: a bool array ``(n,)``, an array of indices, a slice, one index, or ``None``
    for all. A later verdict replaces an earlier one, except that a kept frame stays kept. A batch of 64 costs
    a few microseconds in all; if it is dropped whole, no verdict array is ever made.

    Context: one thread, the queue's owner. Every call after `complete` raises `DeadBatchError`.
    """

    __slots__ = ("_kept", "_leases", "_target_index", "_targets", "_verdicts", "_whole")

    def __init__(self, driver: XdpDriver, ids: U32Array, lengths: U32Array, offsets: int | U32Array) -> None:
        FrameSet.__init__(
            self, driver, ids, lengths, offsets
        )  # not super(): its cell is every thread's, see docs/forwarding.md
        self._whole = _NONE
        self._verdicts: U8Array | None = None
        self._kept: npt.NDArray[np.bool_] | None = None
        self._targets: list[Any] = []
        self._target_index: npt.NDArray[np.uint16] | None = None
        self._done = False

    # What is in it.

    def __repr__(self) -> str:
        state = "completed" if self._done else "alive"
        queue = f"{self._driver.name} queue {self._driver.queue}"
        return f"<XdpBatch of {len(self.ids)} frames from {queue}, {state}>"

    def buffs(self) -> Iterator[XdpBuff]:
        """Yield an `XdpBuff` for each frame that has not been kept, in order."""
        self.check_alive()
        for i in range(len(self.ids)):
            if self._kept is None or not self._kept[i]:
                yield XdpBuff(self, i)

    def __getitem__(self, i: int) -> XdpBuff:
        """Return frame `i` as an `XdpBuff`, which array libraries take as it is."""
        return XdpBuff(self, range(len(self.ids))[i])

    # As one tensor, where it is one.

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """Export the frames, ``(n, length) uint8``, as a DLPack capsule: without a copy, or not at all.

        Raises
        ------
        BufferError
            The frames differ in length, or do not lie at equal distances in memory, ascending; with ``copy=True`` only
            the first. ``headers(n)`` is exported in any case, gathered where it must be.

        Notes
        -----
        The tensor holds a reference to each page, as `lease` does.
        """
        length = self.one_length()
        window = self.headers(length) if length else self.lease()
        return window.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=bool(copy))

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU, ``(1, 0)``: frames are read by it, whatever device has them mapped."""
        return CPU_DEVICE

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """dict : NumPy's array interface, ``(n, length) uint8``, without a copy.

        An array made of it keeps the batch, and the batch a reference to each page.

        Raises
        ------
        BufferError
            As for ``__dlpack__``, but the frames may lie backwards too.
        """
        lease = self.lease()
        if not lease.strided:
            raise BufferError(
                f"the {len(self)} frames lie here and there: headers(n)[:, :] gathers them, and batch[i] is one of them"
            )
        self._leases = [*getattr(self, "_leases", ()), lease]
        return lease.__array_interface__  # type: ignore[no-any-return]

    # What becomes of it.

    @property
    def verdicts(self) -> U8Array:
        """(n,) uint8 : the verdicts, `XdpAction` values, writable; ``NONE`` at first."""
        return self._each_verdict()

    def drop(self, mask: Any = None) -> None:
        """Give the pages back."""
        self._judge(_DROP, mask)

    def pass_(self, mask: Any = None) -> None:
        """Hand the frames to the host's network stack."""
        self._judge(_PASS, mask)

    def tx(self, mask: Any = None) -> None:
        """Send the frames out of the queue they came in on."""
        self._judge(_TX, mask)

    def redirect(self, queue: RedirectTarget, mask: Any = None) -> None:
        """Send the frames out of another queue.

        Parameters
        ----------
        queue : RedirectTarget
            Anything with an ``xdp_xmit``, a `pagepool.shared.Consumer` too; the frames' pages still go home to their
            own pool.
        """
        self.check_alive()
        if not callable(getattr(queue, "xdp_xmit", None)):
            raise TypeError(f"cannot redirect to {type(queue).__name__}: it has no xdp_xmit")
        number = next((k for k, known in enumerate(self._targets, 1) if known is queue), 0)
        if self._target_index is None:
            self._target_index = np.zeros(len(self.ids), np.uint16)
        # The verdict array is indexed first: a bad mask raises there and changes nothing.
        self.verdicts[_ALL if mask is None else mask] = _REDIRECT
        if number == 0:
            self._targets.append(queue)
            number = len(self._targets)
        self._target_index[_ALL if mask is None else mask] = number

    def keep(self, mask: Any = None) -> list[Any]:
        """Take frames out of the batch, each as the `Page` that holds it.

        Returns
        -------
        list of Page
            One handle per frame newly kept, in frame order, each a window on its frame's bytes. The caller
            owns them; a handle that dies, or is put, sends its page back to the pool. Frames kept before are
            not returned again.
        """
        chosen = self.chosen(mask)
        already = self._kept
        if already is None:
            already = np.zeros(len(self.ids), np.bool_)
        page, offsets = self._driver.pool.page, self.offsets
        pages = []
        self._kept = already
        for i in chosen.tolist():
            try:
                pages.append(page(int(self.ids[i]), int(offsets[i]), int(self.lengths[i])))
                already[i] = True
            except BaseException:
                # Ctrl-C may come after the handle was made: it dies and takes the page home. To put a page that is
                # home does nothing, to send it would be wrong.
                self.verdicts[i] = _DROP
                raise
        return pages

    def chosen(self, mask: Any = None) -> npt.NDArray[np.intp]:
        """Return the rows that a mask selects and that have not been kept, in frame order.

        Raises
        ------
        ValueError
            One of them does not lie in its page: its length or offset was overwritten.
        """
        self.check_alive()
        chosen = np.zeros(len(self.ids), np.bool_)
        chosen[_ALL if mask is None else mask] = True
        if self._kept is not None:
            chosen &= ~self._kept
        inside = self.inside_page()
        if inside is not None and not inside[chosen].all():
            raise ValueError("a frame to keep does not lie in its page: its length or offset was overwritten")
        return chosen.nonzero()[0]

    def disown(self, rows: npt.NDArray[np.intp]) -> None:
        """Count frames as kept, without a handle for each: from now on the caller owns the pages ``ids[rows]``.

        Parameters
        ----------
        rows : (m,) intp
            From `chosen`.

        Notes
        -----
        Context: as `keep`; between this and the line where somebody else is responsible for the pages, hold Ctrl-C
        back with `pagepool.napi.guard`. They go home by ``pool.put_bulk``.
        """
        self.check_alive()
        if self._kept is None:
            self._kept = np.zeros(len(self.ids), np.bool_)
        self._kept[rows] = True

    def complete(self) -> None:
        """Carry the verdicts out and give every other page back. Idempotent."""
        if not self._done:
            self._driver.finish(self)

    def __enter__(self) -> XdpBatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.complete()

    def __del__(self) -> None:
        if not self._done:
            self._driver.finish(self)

    # For `carry_out` and the classes of this room.

    def mark_completed(self) -> None:
        """Say that nothing in the batch is owned any more."""
        self._done = True

    def _each_verdict(self) -> U8Array:
        if self._verdicts is None:
            verdicts = np.empty(len(self.ids), np.uint8)
            verdicts.fill(self._whole)
            self._verdicts = verdicts
        return self._verdicts

    @property
    def kept_or_none(self) -> npt.NDArray[np.bool_] | None:
        """(n,) bool or None : which frames were kept, if any."""
        return self._kept

    @property
    def targets(self) -> list[Any]:
        """list of XdpDriver : redirect targets; `target_index` counts them from 1."""
        return self._targets

    def target_index(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint16]:
        """Return the target of each row, 0 for none."""
        if self._target_index is None:
            return np.zeros(len(rows), np.uint16)
        return self._target_index[rows]

    def _judge(self, verdict: int, mask: Any) -> None:
        if self._done:
            self.check_alive()
        if mask is not None:
            self._each_verdict()[mask] = verdict
        elif self._verdicts is None:
            self._whole = verdict
        else:
            self._verdicts.fill(verdict)

# SPDX-License-Identifier: MIT
"""What may become of a frame: the kernel's ``enum xdp_action`` and two words of ours.

The numbers 0 to 4 are the kernel's and may be handed to it. `KEEP` and `NONE` are not: they lie outside the
kernel's range, exist only inside this process, and never reach a device or a BPF program.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["XdpAction"]


class XdpAction(IntEnum):
    """The verdict on one frame.

    Notes
    -----
    ``ABORTED``, ``DROP``
        The page goes back to its pool. ABORTED says that something went wrong and is counted apart.
    ``PASS``
        The frame goes up to the host's network stack, then its page goes back to the pool.
    ``TX``
        The frame leaves by the queue it came in on; the page goes back when the device has sent it.
    ``REDIRECT``
        The frame leaves by another queue.
    ``KEEP``
        Ours, not the kernel's. The caller has taken the page with `XdpBatch.keep`; the queue forgets it.
    ``NONE``
        Ours, not the kernel's. No verdict yet; when the batch is completed it counts as not judged and the
        page goes back to its pool.
    """

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4
    KEEP = 5
    NONE = 255

# SPDX-License-Identifier: MIT
"""Every error that pagepool raises on purpose.

Two families. Misuse of a pool (a double put, a page of another pool, the wrong thread) is a `PagePoolError` that names
the page and the pool. What a system call refused is a `DeviceError`, an `OSError` with its errno, the call, the object
and what to do about it. Nothing here imports anything else of the package.
"""

from __future__ import annotations

import errno as _errno
import os

__all__ = [
    "DeadPageError",
    "DeviceError",
    "DmaFault",
    "DoublePutError",
    "ForeignPageError",
    "NotMappedError",
    "NotSupportedError",
    "PageLeakError",
    "PageLeakWarning",
    "PagePoolError",
    "PoolBusyError",
    "PoolClosedError",
    "WrongThreadError",
]


class PagePoolError(RuntimeError):
    """Misuse of a pool or a page; the pool is unchanged and nothing is lost."""


class DeadPageError(PagePoolError):
    """A handle was used after its page was put."""


class DoublePutError(DeadPageError):
    """A page was put twice. The kernel does not catch this one."""


class ForeignPageError(PagePoolError):
    """A page or an id was given to a pool that it does not belong to."""


class WrongThreadError(PagePoolError):
    """A call that only the pool's owner may make came from another thread."""


class PoolBusyError(PagePoolError):
    """The owner is inside the pool, without the GIL, while another thread wants to take it over or close it."""


class PoolClosedError(PagePoolError):
    """A page was asked of a pool after `close`."""


class NotMappedError(PagePoolError):
    """The ``dma_addr`` of a page was asked of a pool that maps nothing (no ``PPFlag.DMA_MAP``)."""


class DmaFault(PagePoolError):
    """A software IOMMU found an access or a call that breaks the rules of DMA; `finding` has it all.

    Parameters
    ----------
    text : str
    finding : pagepool.dma.Finding, optional
    """

    def __init__(self, text: str, finding: object = None) -> None:
        super().__init__(text)
        self.finding = finding


class PageLeakError(PagePoolError):
    """A handle of a strict pool died without a put; it reaches ``sys.unraisablehook``."""


class PageLeakWarning(ResourceWarning):
    """A pool was left while pages were still lent; the text lists them."""


class DeviceError(OSError):
    """A system call on a device was refused.

    Parameters
    ----------
    errno : int
        The error number the kernel gave.
    call : str
        The system call or step, ``"bind AF_XDP"``.
    obj : str
        What it was done to, ``"eth0 queue 3"``.
    hint : str, optional
        What it means here and what to do.
    """

    def __init__(self, errno: int, call: str, obj: str, hint: str = "") -> None:
        self.call, self.obj, self.hint = call, obj, hint
        # 95 has two names, and the library knows it by the one that the kernel's documents do not use.
        name = "EOPNOTSUPP" if errno == _errno.EOPNOTSUPP else _errno.errorcode.get(errno, str(errno))
        super().__init__(errno, f"{call} {obj}: {name}; {hint or os.strerror(errno)}")

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[DeviceError], tuple[int, str, str, str]]:
        return type(self), (self.errno or 0, self.call, self.obj, self.hint)


class NotSupportedError(DeviceError):
    """This machine cannot do it.

    Parameters
    ----------
    feature : str
        What was asked for, ``"AF_XDP zero copy"``.
    needs : str
        What would make it work, ``"a driver with XDP_ZEROCOPY"``.
    """

    def __init__(self, feature: str, needs: str) -> None:
        self.feature, self.needs = feature, needs
        super().__init__(_errno.EOPNOTSUPP, feature, "not supported here", f"needs {needs}")

    def __reduce__(self) -> tuple[type[DeviceError], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.feature, self.needs)

# SPDX-License-Identifier: MIT
"""A layer that refuses chosen calls, to see what a pool does when a device fails.

A refused call never reaches the device: a refused map is not mapped, a refused unmap is still mapped.
Deterministic: rules count calls, there is no chance.
"""

from __future__ import annotations

import errno as _errno
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pagepool.dma.call import DmaCall, DmaOp
from pagepool.dma.device import DmaDevice
from pagepool.dma.layer import DmaLayer
from pagepool.errors import DeviceError


@dataclass(frozen=True, slots=True)
class FaultRule:
    """Which calls to refuse. Conditions add up; a rule without any refuses all.

    Attributes
    ----------
    op : DmaOp
        Which call it is about; only these are counted.
    errno : int
        What the refusal says.
    nth : int or None
        Refuse the `nth` of them since the rule was set, from 1.
    every : int or None
        Refuse each `every`-th.
    when : callable or None
        Refuse those for which it returns true; called with the `DmaCall`.
    times : int or None
        Refuse so many at most.
    """

    op: DmaOp = DmaOp.MAP
    errno: int = _errno.ENOMEM
    nth: int | None = None
    every: int | None = None
    when: Callable[[DmaCall], bool] | None = None
    times: int | None = None

    def __post_init__(self) -> None:
        for name in ("nth", "every", "times"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is less than 1")

    def matches(self, call: DmaCall, number: int) -> bool:
        """Whether to refuse `call`, the `number`-th of its kind, from 1."""
        return (
            (self.nth is None or number == self.nth)
            and (self.every is None or number % self.every == 0)
            and (self.when is None or self.when(call))
        )


@dataclass(slots=True)
class _Armed:
    rule: FaultRule
    seen: int = 0
    refused: int = 0


class FaultInjector(DmaLayer):
    """Refuse chosen calls on a device.

    Parameters
    ----------
    inner : DmaDevice
        The device behind.
    *rules : FaultRule
        Which calls to refuse; more can come by `fail`.

    Examples
    --------
    >>> device = FaultInjector(HostDevice())
    >>> device.fail("map", nth=3)  # the third map: ENOMEM
    >>> device.fail("unmap", errno=errno.EBUSY, times=1)
    """

    def __init__(self, inner: DmaDevice, *rules: FaultRule) -> None:
        super().__init__(inner)
        self._lock = threading.RLock()  # see DmaLayer: a page may die in here
        self._armed = [_Armed(rule) for rule in rules]
        self._injected = 0

    def fail(
        self,
        op: DmaOp | str = DmaOp.MAP,
        *,
        errno: int = _errno.ENOMEM,
        nth: int | None = None,
        every: int | None = None,
        when: Callable[[DmaCall], bool] | None = None,
        times: int | None = None,
    ) -> None:
        """Add a rule (see `FaultRule`); it counts from now."""
        rule = FaultRule(DmaOp(op), errno, nth, every, when, times)
        with self._lock:
            self._armed.append(_Armed(rule))

    def clear(self) -> None:
        """Take all rules away: calls pass."""
        with self._lock:
            self._armed.clear()

    @property
    def injected(self) -> int:
        """How many calls were refused."""
        with self._lock:
            return self._injected

    def before(self, call: DmaCall) -> None:
        """Raise a `DeviceError` if a rule says so; the first that does wins, all count the call."""
        with self._lock:
            refusing: _Armed | None = None
            for armed in self._armed:
                if armed.rule.op is not call.op:
                    continue
                armed.seen += 1
                spent = armed.rule.times is not None and armed.refused >= armed.rule.times
                if refusing is None and not spent and armed.rule.matches(call, armed.seen):
                    refusing = armed
            if refusing is None:
                return
            refusing.refused += 1
            self._injected += 1
        raise DeviceError(refusing.rule.errno, str(call), f"for {self.name}", "injected fault")

# SPDX-License-Identifier: MIT
"""`FlowRules`: have the NIC itself send frames to a queue, before any memory of the host is touched.

Rules are the driver's, in its table, and outlive the process that made them: they are removed by `FlowRules.close`, not
by the death of the process as the XDP program is. Invariant: it removes what it added and nothing else, and leaves the
NIC's n-tuple switch as it was.

By ioctl, for ethtool's netlink family has no message for them (it has 50 messages in Linux 6.18, the last for RSS
contexts); the n-tuple switch and the RSS table go by netlink: `pagepool.ethtool`.

Source: ``linux/ethtool.h`` (``ETHTOOL_SRXCLSRLINS`` and its neighbours).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pagepool import ethtool
from pagepool.drivers.flow_spec import FlowSpec, flow_specs
from pagepool.errors import DeviceError
from pagepool.ethtool_ioctl import ethtool_ioctl
from pagepool.napi import guard

__all__ = ["FlowRule", "FlowRules"]

_COUNT, _RULE, _ALL, _DELETE, _INSERT = 0x2E, 0x2F, 0x30, 0x31, 0x32  # ETHTOOL_GRXCLSRLCNT ... ETHTOOL_SRXCLSRLINS
_SPEC: Final = struct.Struct("=I72s72s4xQI4x")  # struct ethtool_rx_flow_spec
_HEAD: Final = struct.Struct("=IIQ")  # struct ethtool_rxnfc up to its spec: command, flow type, data
_RULES_AT: Final = _HEAD.size + _SPEC.size  # rule_cnt; the places follow
_SPECIAL: Final = 1 << 31
_ANY: Final = 0xFFFF_FFFF
_NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFFF
_PAGEABLE: Final = 4096

_HINTS: Final = {
    errno.ENODEV: "no such interface in this network namespace",
    errno.EPERM: "needs CAP_NET_ADMIN",
    errno.EOPNOTSUPP: "the driver cannot match these fields, or has no rules; filter= of the queue does it in XDP",
    errno.EINVAL: "the driver cannot match these fields, or has no such queue (dmesg may say which)",
    errno.ENOSPC: "its table is full",
    errno.EBUSY: "the place is taken, or the NIC is being reset",
    errno.EEXIST: "the NIC has this rule already",
    errno.ENOENT: "there is no such rule",
}


@dataclass(frozen=True)
class FlowRule:
    """A rule of the NIC.

    Attributes
    ----------
    location : int
        Its place; of several that match, the lowest decides in most NICs.
    queue : int or None
        Where the frames go; None: they are dropped.
    spec : FlowSpec
        What it matches.
    """

    location: int
    queue: int | None
    spec: FlowSpec


class FlowRules:
    """Rules of one interface, removed when this is closed.

    Parameters
    ----------
    ifname : str
        In the calling thread's network namespace, now and in every later call.

    Raises
    ------
    DeviceError
        EOPNOTSUPP: the driver has no n-tuple rules. ENODEV, EPERM.

    Notes
    -----
    Context: any thread, one at a time.

    Examples
    --------
    ::

        with FlowRules("eth0") as rules, AfXdpQueue("eth0", 3) as rxq:
            rules.add("udp dst port 53", queue=3)
    """

    def __init__(self, ifname: str) -> None:
        self.ifname = ifname
        self._own: list[int] = []
        self._switched = False
        self._guards = True
        guard.install()
        try:
            guard.enter()
            try:
                self._switch_on()
            finally:
                guard.leave()
        except BaseException:
            self.close()
            raise

    def _switch_on(self) -> None:
        state = ethtool.feature(self.ifname, ethtool.NTUPLE)
        if state.is_on:
            return
        if not state.can_change:
            hint = "the driver has no n-tuple rules; filter= of the queue does it in XDP"
            raise DeviceError(errno.EOPNOTSUPP, "flow rules", self.ifname, hint)
        self._switched = True  # from now on: a Ctrl-C may find it switched
        try:
            ethtool.set_feature(self.ifname, ethtool.NTUPLE, True)
        except DeviceError:
            self._switched = False
            raise

    def add(self, filter: str, queue: int) -> list[int]:
        """Send what matches to a receive queue.

        Parameters
        ----------
        filter : str
            As for `AfXdpQueue`, but only what comparing fields can say: no ``not``, no ranges. ``or`` and words
            that mean several things (``port 53``: TCP, UDP and SCTP, IPv4 and IPv6, either end) become several rules.
        queue : int
            Where to.

        Returns
        -------
        list of int
            Places of the rules. All of them, or none where it raises.

        Raises
        ------
        FilterError
            It does not parse, or no rule can say it.
        DeviceError
            The driver's refusal. What a NIC can match differs much: each has its own list.
        """
        added: list[int] = []
        try:
            for spec in flow_specs(filter):
                guard.enter()  # a Ctrl-C waits until the place is written down: the rule would outlive us
                try:
                    added.append(self._insert(spec, queue))
                    self._own.append(added[-1])
                finally:
                    guard.leave()
        except BaseException:
            self.remove(added[::-1])
            raise
        return added

    def remove(self, locations: list[int]) -> None:
        """Remove rules of ours again.

        Raises
        ------
        ValueError
            One of them is not ours; nothing has changed.
        """
        foreign = [location for location in locations if location not in self._own]
        if foreign:
            raise ValueError(f"{self.ifname}: rules {foreign} are not of this object")
        for location in locations:
            self._delete(location)
            self._own.remove(location)

    def listed(self) -> list[FlowRule]:
        """Return all rules of the interface, whoever made them."""
        found = []
        for location in self._table()[0]:
            raw = self._nfc(_RULE, "read flow rule", location=location)
            flow_type, values, masks, cookie, at = _SPEC.unpack_from(raw, _HEAD.size)
            queue = None if cookie == _NOWHERE else cookie & 0xFFFF_FFFF
            found.append(FlowRule(at, queue, FlowSpec(flow_type, values, masks)))
        return found

    @property
    def own(self) -> list[int]:
        """Places of the rules that were added here."""
        return list(self._own)

    def close(self) -> None:
        """Remove our rules, and switch n-tuple rules off again if they were. Idempotent.

        Raises
        ------
        DeviceError
            A rule could not be removed; the others are gone.
        """
        guard.enter()  # a Ctrl-C waits; what a second one interrupts goes on where it was when this is called again
        try:
            self._remove_all()
        finally:
            if self._guards:
                self._guards = False
                guard.uninstall()
            guard.leave()

    def _remove_all(self) -> None:
        failure: DeviceError | None = None
        while self._own:
            try:
                self._delete(self._own[-1])
            except DeviceError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # somebody was faster, or the interface is gone
                    failure = error
            self._own.pop()
        if self._switched:
            try:
                ethtool.set_feature(self.ifname, ethtool.NTUPLE, False)
            except DeviceError as error:
                if error.errno != errno.ENODEV:
                    failure = failure or error
            self._switched = False
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FlowRules of {self.ifname}: {len(self._own)} of ours>"

    # -- the ioctl ----------------------------------------------------------------------------------------------

    def _insert(self, spec: FlowSpec, queue: int) -> int:
        (_, _, special) = _HEAD.unpack_from(self._nfc(_COUNT, "count flow rules"))
        location = _ANY if special & _SPECIAL else self._free()
        answer = self._nfc(_INSERT, f"add flow rule to queue {queue}", spec=spec, queue=queue, location=location)
        return int(_SPEC.unpack_from(answer, _HEAD.size)[4])

    def _free(self) -> int:
        """Return the last free place: rules of other programs keep their precedence."""
        taken, nr_places = self._table()
        for location in reversed(range(nr_places)):
            if location not in taken:
                return location
        raise DeviceError(errno.ENOSPC, "add flow rule", self.ifname, f"all {nr_places} places are taken")

    def _delete(self, location: int) -> None:
        self._nfc(_DELETE, "remove flow rule", location=location)

    def _table(self) -> tuple[list[int], int]:
        """Return the places that are taken, and how many there are."""
        (count,) = struct.unpack_from("=I", self._nfc(_COUNT, "count flow rules"), _RULES_AT)
        room = min(count + 64, _PAGEABLE)
        raw = self._nfc(_ALL, "list flow rules", nr_places=room)
        _, _, nr_places = _HEAD.unpack_from(raw)
        (found,) = struct.unpack_from("=I", raw, _RULES_AT)
        return sorted(struct.unpack_from(f"={min(found, room)}I", raw, _RULES_AT + 4)), nr_places & ~_SPECIAL

    def _nfc(
        self,
        command: int,
        call: str,
        *,
        spec: FlowSpec | None = None,
        queue: int = 0,
        location: int = 0,
        nr_places: int = 0,
    ) -> bytes:
        """Do one ``struct ethtool_rxnfc``; return it as the kernel left it."""
        flow_type, values, masks = (spec.flow_type, spec.values, spec.masks) if spec is not None else (0, b"", b"")
        raw = _HEAD.pack(command, 0, 0) + _SPEC.pack(flow_type, values, masks, queue, location)
        raw += struct.pack("=I", nr_places) + bytes(4 * nr_places + 4)
        try:
            return ethtool_ioctl(self.ifname, raw)
        except OSError as error:
            number = error.errno or errno.EIO
            raise DeviceError(number, call, self.ifname, _HINTS.get(number, str(error.strerror))) from None

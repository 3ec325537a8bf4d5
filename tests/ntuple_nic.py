# SPDX-License-Identifier: MIT
"""A NIC with a table of flow rules, behind the doors that `FlowRules` goes through: ethtool's ioctl and feature bits.

The kernel's side of ``ETHTOOL_SRXCLSRLINS`` and its neighbours for as long as no machine at hand has such a NIC.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from pagepool import ethtool
from pagepool.drivers import flow_rules

COUNT, RULE, ALL, DELETE, INSERT = 0x2E, 0x2F, 0x30, 0x31, 0x32
SPEC_AT, COUNT_AT = 16, 16 + struct.calcsize("=I72s72s4xQI4x")
QUEUE_AT, LOCATION_AT = SPEC_AT + 152, SPEC_AT + 160
IP_USER = 0x0D


class NtupleNic:
    """The table, and what happens before and after each call.

    Attributes
    ----------
    table : dict
        Place -> (flow type, queue).
    is_on : bool
        The n-tuple switch.
    called : callable
        Called after each call has had its effect.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, places: int = 8) -> None:
        self.places = places
        self.table: dict[int, tuple[int, int]] = {}
        self.is_on = False
        self.called: Callable[[], object] = lambda: None
        monkeypatch.setattr(flow_rules, "ethtool_ioctl", self._ioctl)
        monkeypatch.setattr(flow_rules.ethtool, "feature", lambda ifname, name: ethtool.Feature(self.is_on, True))
        monkeypatch.setattr(flow_rules.ethtool, "set_feature", self._switch)

    def _switch(self, ifname: str, name: str, on: bool) -> None:
        self.is_on = on
        self.called()

    def _ioctl(self, ifname: str, payload: bytes) -> bytes:
        answer = bytearray(payload)
        (command,) = struct.unpack_from("=I", payload)
        (location,) = struct.unpack_from("=I", payload, LOCATION_AT)
        if command == COUNT:
            struct.pack_into("=I", answer, COUNT_AT, len(self.table))
        elif command == ALL:
            struct.pack_into("=Q", answer, 8, self.places)
            struct.pack_into(f"=I{len(self.table)}I", answer, COUNT_AT, len(self.table), *sorted(self.table))
        elif command == INSERT:
            (kind,) = struct.unpack_from("=I", payload, SPEC_AT)
            if kind == IP_USER:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self.table[location] = (kind, struct.unpack_from("=Q", payload, QUEUE_AT)[0])
        elif command == DELETE:
            if location not in self.table:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            del self.table[location]
        self.called()
        return bytes(answer)

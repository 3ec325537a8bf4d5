# SPDX-License-Identifier: MIT
"""Rules of a NIC are removed by whom they were made, however often that is interrupted. The NIC is a double."""

from __future__ import annotations

import errno
import itertools
import signal

import pytest

from ntuple_nic import NtupleNic
from pagepool.drivers.flow_rules import FlowRules
from pagepool.errors import DeviceError
from pagepool.napi import guard


@pytest.fixture
def nic(monkeypatch: pytest.MonkeyPatch) -> NtupleNic:
    return NtupleNic(monkeypatch)


def test_rules_take_the_last_places_and_leave_those_of_others(nic: NtupleNic) -> None:
    nic.table[7] = (1, 0)
    with FlowRules("nic") as rules:
        assert rules.add("udp dst port 53", queue=3) == [6, 5]
        assert {place: queue for place, (_, queue) in nic.table.items()} == {7: 0, 6: 3, 5: 3}
        assert nic.is_on
    assert nic.table == {7: (1, 0)}
    assert not nic.is_on


def test_of_several_rules_all_or_none(nic: NtupleNic) -> None:
    with FlowRules("nic") as rules:
        with pytest.raises(DeviceError, match="EINVAL") as caught:
            rules.add("ip and (udp dst port 53 or proto 47)", queue=1)  # the second is one that it cannot match
        assert caught.value.errno == errno.EINVAL
        assert (rules.own, nic.table) == ([], {})


def test_ctrl_c_at_any_step_leaves_no_rule(nic: NtupleNic) -> None:
    """It comes when the n-th call has had its effect, for every n that there is."""
    for step in itertools.count(1):
        calls = itertools.count(1)
        nic.called = lambda calls=calls, step=step: (  # type: ignore[misc]
            signal.raise_signal(signal.SIGINT) if next(calls) == step else None
        )
        interrupted = False
        try:
            with FlowRules("nic") as rules:
                rules.add("udp dst port 53", queue=3)
        except KeyboardInterrupt:
            interrupted = True
        assert nic.table == {}, step
        assert not nic.is_on, step
        assert not guard.is_installed
        if not interrupted:
            break
    assert step > 8

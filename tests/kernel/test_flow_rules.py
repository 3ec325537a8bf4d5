# SPDX-License-Identifier: MIT
"""ethtool by netlink and ioctl on veth, which has features to switch and no rules. The VM has a NIC with rules."""

from __future__ import annotations

import errno

import pytest

from pagepool import ethtool
from pagepool.drivers.af_xdp import nr_rx_queues
from pagepool.drivers.flow_rules import FlowRules
from pagepool.errors import DeviceError
from pagepool.testing.veth import VethPair

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns]


def test_features_are_switched_and_read(veth: VethPair) -> None:
    assert ethtool.feature("near", "rx-gro") == ethtool.Feature(is_on=False, can_change=True)
    ethtool.set_feature("near", "rx-gro", True)
    assert ethtool.feature("near", "rx-gro").is_on
    ethtool.set_feature("near", "rx-gro", False)
    assert not ethtool.feature("near", "rx-gro").is_on
    assert ethtool.feature("near", "no such feature") == ethtool.Feature(is_on=False, can_change=False)


def test_refusals_say_what_and_why(veth: VethPair) -> None:
    with pytest.raises(DeviceError, match=r"EOPNOTSUPP; the driver has no n-tuple rules; filter= of the queue"):
        FlowRules("near")
    with pytest.raises(DeviceError, match="ENODEV; no such interface"):
        FlowRules("none")
    with pytest.raises(DeviceError, match="bit name not found"):
        ethtool.set_feature("near", "no such feature", True)
    with pytest.raises(DeviceError) as caught:
        ethtool.rss_indirection("near")
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(ValueError, match="no queue"):
        ethtool.set_rss_indirection("near", [])


@pytest.mark.parametrize("veth", [{"nr_queues": 3, "near_name": "fifteen-letters"}], indirect=True)
def test_queues_are_counted_of_the_interface_that_was_named(veth: VethPair) -> None:
    assert nr_rx_queues("fifteen-letters") == 3
    for name in ("fifteen-letters-and-more", "fifteen-letters\0", "none"):
        with pytest.raises(DeviceError, match="ENODEV; no such interface"):
            nr_rx_queues(name)

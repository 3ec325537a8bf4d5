# SPDX-License-Identifier: MIT
"""Flow rules on the kernel's own igb: added, listed, removed, refused.

The driver offers them from the i350 on; a module of ours has it do so on QEMU's 82576, whose registers are the same.
QEMU keeps what is written there and steers no frame by it: what is asserted is what driver and kernel say they have.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import closing

from pagepool import ethtool, probe
from pagepool.drivers.flow_rules import FlowRules
from pagepool.errors import DeviceError

from .support import modules
from .support.command import Command
from .support.net import bring_up, interface_of
from .support.pci import PciDevice
from .support.plan import device

BOOTS = ("newest",)
MODULES = ("igb", "flow_rules")
NIC = "igb1"


def interface() -> str:
    """The NIC's interface, up, with the kernel's igb for it and n-tuple rules to be had."""
    modules.load("igb")
    PciDevice(device(NIC).bdf).bind("igb")
    modules.load("flow_rules", "igb_ntuple")
    ifname = interface_of(device(NIC).mac)
    bring_up(ifname)
    return ifname


def refusal(call: Callable[..., object], *arguments: object) -> Exception:
    """Return what a call raises."""
    try:
        call(*arguments)
    except (DeviceError, ValueError) as error:
        return error
    raise AssertionError(f"{arguments} was taken")


def test_a_driver_without_rules_says_so() -> None:
    ifname = interface_of(device("virtio0").mac)
    assert "no n-tuple rules" in str(refusal(FlowRules, ifname))


def test_rules_are_added_listed_and_removed() -> None:
    ifname = interface()
    before = ethtool.feature(ifname, ethtool.NTUPLE)
    assert before.can_change, before
    assert ifname in probe.flow_rules().reason
    with FlowRules(ifname) as rules:
        assert ethtool.feature(ifname, ethtool.NTUPLE).is_on
        assert rules.listed() == []
        first = rules.add("ether proto 0x88b5", queue=1)
        second = rules.add("arp", queue=0)
        listed = {rule.location: rule for rule in rules.listed()}
        assert set(listed) == {*first, *second} == set(rules.own)
        assert (listed[first[0]].queue, listed[second[0]].queue) == (1, 0)
        assert listed[first[0]].spec.values[12:14] == b"\x88\xb5"
        assert listed[first[0]].spec.masks[12:14] == b"\xff\xff"
        rules.remove(second)
        assert [rule.location for rule in rules.listed()] == first
        with closing(FlowRules(ifname)) as other:
            third = other.add("ether proto 0x88b6", queue=0)
            assert "not of this object" in str(refusal(rules.remove, third))
        assert [rule.location for rule in rules.listed()] == first
    assert ethtool.feature(ifname, ethtool.NTUPLE) == before


def test_what_this_nic_cannot_match() -> None:
    ifname = interface()
    with FlowRules(ifname) as rules:
        for filter, queue in (("udp dst port 53", 0), ("ether proto 0x88b5", 99), ("arp or udp dst port 53", 0)):
            error = refusal(rules.add, filter, queue)
            assert isinstance(error, DeviceError), error
            assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP), error
            assert "cannot match these fields" in str(error), error
            assert rules.own == []
            assert rules.listed() == []  # of several rules, those before the refused one are gone again


def test_the_command_has_rules_while_it_runs() -> None:
    ifname = interface()
    before = ethtool.feature(ifname, ethtool.NTUPLE)
    command = Command("rx", ifname, "--steer", "1:ether proto 0x88b5", "--steer", "0:arp")
    print(*(command.stdout.readline() for _ in range(3)))
    with FlowRules(ifname) as rules:
        queues = sorted(rule.queue for rule in rules.listed() if rule.queue is not None)
    command.terminate()
    out, errors, status = command.stdout.read(), command.stderr.read(), command.wait()
    print(out)
    assert (status, errors) == (0, ""), errors
    assert queues == [0, 1]
    assert "itself sends 'arp' to queue 0, by one rule" in out
    with FlowRules(ifname) as rules:
        assert rules.listed() == []
    assert ethtool.feature(ifname, ethtool.NTUPLE) == before
    command = Command("rx", ifname, "--steer", "0:udp dst port 53")
    errors, status = command.stderr.read(), command.wait()
    print(errors)
    assert (status, errors.count("\n")) == (1, 1)
    assert "cannot match these fields" in errors


def test_the_rss_table() -> None:
    ifname = interface()
    before = ethtool.rss_indirection(ifname)
    assert set(before) == {0, 1}, before
    ethtool.set_rss_indirection(ifname, [0])
    assert set(ethtool.rss_indirection(ifname)) == {0}
    ethtool.set_rss_indirection(ifname, [0, 1])
    assert ethtool.rss_indirection(ifname) == [0, 1] * (len(before) // 2)

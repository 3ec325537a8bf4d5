# SPDX-License-Identifier: MIT
"""What netlink shows of the kernel's own page pools, where there are real ones, and where the kernel is too old."""

from __future__ import annotations

from pagepool.errors import NotSupportedError
from pagepool.kernel_pools import has_stats, kernel_pools

from .support import host
from .support.net import bring_up, interface_of
from .support.plan import device
from .support.suite import only_on

BOOTS = ("newest", "oldest")


@only_on("newest")
def test_pools_of_virtio_net() -> None:
    interface = interface_of(device("virtio0").mac)
    bring_up(interface)
    assert has_stats()
    before = {pool.ifname: pool for pool in kernel_pools()}[interface]
    host.send("virtio0", 32).result()
    while (after := {pool.ifname: pool for pool in kernel_pools()}[interface]).stats == before.stats:
        pass
    print(after)
    assert after.id == before.id > 0
    assert after.napi_id > 0
    assert after.inflight_mem == 4096 * after.inflight > 0
    assert after.detach_time is None
    assert after.stats["alloc-slow"] * 64 >= after.inflight
    assert sum(after.stats.values()) > sum(before.stats.values())


@only_on("oldest")
def test_an_old_kernel_says_what_would_do() -> None:
    reason = ""
    try:
        kernel_pools()
    except NotSupportedError as error:
        reason = str(error)
    print(reason)
    assert "Linux 6" in reason

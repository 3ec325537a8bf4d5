# SPDX-License-Identifier: MIT
"""The kernel's own pools: what netlink says, taken apart; refusals in words; the command. With and without a kernel
that has any."""

from __future__ import annotations

import errno
import json
import struct
from typing import Any

import pytest

from pagepool import PagePool, kernel_pools, netlink
from pagepool.cli.main import main
from pagepool.errors import NotSupportedError

STATS = dict(
    zip(
        kernel_pools._COUNTERS,
        (984, 1, 0, 1, 16, 0, 0, 0, 1000, 0, 0),
        strict=True,
    )
)


def attribute(kind: int, raw: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def uint(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value) if value < 1 << 32 else struct.pack("=Q", value))


def a_kernel(monkeypatch: pytest.MonkeyPatch, *, stats: bool = True, pools: bool = True) -> None:
    """Have netlink answer as a kernel does that has one pool alive on lo and one destroyed."""
    alive = uint(1, 7) + uint(2, 1) + uint(3, 513) + uint(4, 192) + uint(5, 192 << 12)
    detached = uint(1, 3) + uint(4, 1) + uint(5, 1 << 33) + uint(6, 4242)
    counted = attribute(1 | 0x8000, uint(1, 7)) + b"".join(uint(8 + i, n) for i, n in enumerate(STATS.values()))

    def dump(family: str, command: int) -> list[netlink.Attributes]:
        assert family == "netdev"
        if command == kernel_pools._PAGE_POOL_STATS_GET:
            if not stats:
                raise OSError(errno.EOPNOTSUPP, "no counters")
            return [netlink.attributes(counted)] if pools else []
        return [netlink.attributes(alive), netlink.attributes(detached)] if pools else []

    monkeypatch.setattr(netlink, "dump", dump)


def test_this_kernel_lists_its_pools_or_says_why_not() -> None:
    found, refusal = [], ""
    try:
        found = kernel_pools.kernel_pools()
    except NotSupportedError as error:
        refusal = str(error)
    assert not refusal or "Linux 6" in refusal
    for pool in found:
        assert pool.id > 0
        assert pool.inflight_mem >= 4096 * pool.inflight
        assert not pool.stats or list(pool.stats) == list(STATS)
    assert not any(pool.stats for pool in found) or kernel_pools.has_stats()


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        netlink.dump("no such family", 1)


def test_a_command_that_is_not_there_has_its_errno() -> None:
    with pytest.raises(OSError, match="command 250") as caught:
        netlink.dump("nlctrl", 250)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_controllers_families_as_a_dump() -> None:
    families = netlink.dump("nlctrl", 3)
    assert b"nlctrl\0" in [family[2] for family in families]


def test_pools_by_id_with_their_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    a_kernel(monkeypatch)
    detached, alive = kernel_pools.kernel_pools()
    assert (alive.id, alive.ifname, alive.napi_id, alive.inflight, alive.inflight_mem) == (7, "lo", 513, 192, 786432)
    assert alive.stats == STATS
    assert alive.detach_time is None
    assert (detached.id, detached.ifname, detached.inflight_mem, detached.detach_time) == (3, "", 1 << 33, 4242)
    assert detached.stats == {}


def test_ours_and_theirs_have_the_same_counters() -> None:
    with PagePool() as pool:
        assert list(pool.stats().kernel()) == list(STATS)


def test_a_kernel_without_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    a_kernel(monkeypatch, stats=False)
    assert not kernel_pools.has_stats()
    assert [pool.stats for pool in kernel_pools.kernel_pools()] == [{}, {}]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(FileNotFoundError(), "netlink family netdev"), (OSError(errno.EOPNOTSUPP, ""), "lists its page pools")],
)
def test_a_kernel_that_is_too_old_says_which_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, reason: str
) -> None:
    def dump(family: str, command: int) -> list[netlink.Attributes]:
        raise error

    monkeypatch.setattr(netlink, "dump", dump)
    with pytest.raises(NotSupportedError, match=reason):
        kernel_pools.kernel_pools()
    assert main(["kernel-pools"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert reason in err


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["kernel-pools", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_command_shows_what_was_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a_kernel(monkeypatch)
    above, names, detached, alive = table(capsys)
    assert above.split() == ["alloc"] * 4 + ["recycle"]
    assert names.split() == ["pool", "device", "pages", "memory", "fast", "slow", "empty", "refill", "ring", "recycled"]
    assert alive.split() == ["7", "lo", "192", "768", "KiB", "984", "1", "1", "16", "1,000", "99.9", "%"]
    assert detached.split()[:5] == ["3", "destroyed", "1", "8", "GiB"]
    assert max(map(len, (above, names, detached, alive))) <= 80


def test_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a_kernel(monkeypatch, stats=False)
    assert "CONFIG_PAGE_POOL_STATS" in table(capsys)[-1]
    a_kernel(monkeypatch, pools=False)
    (line,) = table(capsys)
    assert "no driver here uses one" in line
    assert table(capsys, "--json") == []


def test_command_json_is_an_object_a_pool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a_kernel(monkeypatch)
    found: list[dict[str, Any]] = [json.loads(line) for line in table(capsys, "--json")]
    assert [pool["id"] for pool in found] == [3, 7]
    assert found[1]["stats"] == STATS

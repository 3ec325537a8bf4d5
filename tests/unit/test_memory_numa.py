# SPDX-License-Identifier: MIT
"""NUMA: names of nodes, placement and its read-back, and kernels that have none."""

from __future__ import annotations

import ctypes
import errno
from collections import Counter

import pytest

from pagepool._core.params import NUMA_NO_NODE, SLAB_SIZE
from pagepool.memory import PageAllocator, _libc, numa

MISSING = 63


def test_there_is_a_node_and_we_run_on_one() -> None:
    assert numa.nodes()
    assert list(numa.nodes()) == sorted(set(numa.nodes()))
    assert numa.current_node() >= 0


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("0\n", (0,)), ("0-1\n", (0, 1)), ("0-2,5,7-8\n", (0, 1, 2, 5, 7, 8)), ("\n", ())],
)
def test_reads_the_kernels_list_format(text: str, nodes: tuple[int, ...]) -> None:
    assert numa._node_list(text) == nodes


@pytest.mark.parametrize("nid", [MISSING, -2])
def test_a_node_that_is_not_there_names_those_that_are(nid: int) -> None:
    there = ", ".join(map(str, numa.nodes()))
    with pytest.raises(ValueError, match=f"no NUMA node {nid}.*nodes: {there}$"):
        PageAllocator(SLAB_SIZE, nid=nid)


@pytest.mark.parametrize("nid", [NUMA_NO_NODE, *numa.nodes()])
@pytest.mark.parametrize("fallback", [True, False])
def test_memory_is_where_it_was_asked_for(nid: int, fallback: bool) -> None:
    allocator = PageAllocator(2 * SLAB_SIZE, nid=nid, commit=True, fallback=fallback)
    node = numa.node_of(allocator.base_vaddr)
    if nid != NUMA_NO_NODE:
        assert node == nid
        assert allocator.nids == {nid: 2}
    assert allocator.arena.slab_nid(0) == node
    assert numa.nodes_of(allocator.base_vaddr, SLAB_SIZE).total() == 512


@pytest.mark.parametrize("nid", numa.nodes())
def test_a_pool_may_ask_for_its_node(nid: int) -> None:
    allocator = PageAllocator(4 * SLAB_SIZE)
    assert allocator.grow(0, nid)
    assert numa.node_of(allocator.base_vaddr + SLAB_SIZE) == nid
    assert allocator.arena.slab_nid(1) == nid


def test_growing_for_a_node_that_is_not_there_grows_anywhere() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE)
    assert allocator.grow(0, MISSING)
    assert allocator.arena.slab_nid(1) in numa.nodes()


def test_pages_move_to_a_node_and_absent_pages_have_none() -> None:
    allocator = PageAllocator(4 * SLAB_SIZE)
    nid = numa.nodes()[-1]
    assert numa.move(allocator.base_vaddr, SLAB_SIZE, nid) == {nid: 512}
    assert numa.nodes_of(allocator.base_vaddr + SLAB_SIZE, SLAB_SIZE) == {NUMA_NO_NODE: 512}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("nodes", [(0,), (0, 1)])
def test_a_kernel_that_will_not_say(number: int, nodes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, "no")

    for call in ("mbind", "get_mempolicy_node", "move_pages", "getcpu_node"):
        monkeypatch.setattr(_libc, call, refuse)
    monkeypatch.setattr(numa, "nodes", lambda: nodes)
    allocator = PageAllocator(2 * SLAB_SIZE, nid=nodes[-1])
    assert allocator.nids == {0: 1}
    unknown = 0 if nodes == (0,) else NUMA_NO_NODE
    assert numa.node_of(allocator.base_vaddr) == unknown
    assert numa.nodes_of(allocator.base_vaddr, SLAB_SIZE) == {unknown: 512}
    if len(nodes) > 1:
        assert "node 0: 1 slab" in allocator.describe()
        with pytest.raises(OSError, match="no"):
            numa.bind(allocator.base_vaddr, SLAB_SIZE, 1, strict=True)


def no_numa_calls() -> bool:
    """Whether the kernel has no NUMA, or a container's filter hides it."""
    try:
        _libc.get_mempolicy_node(id(MISSING) & ~4095)
    except OSError as error:
        return error.errno in (errno.ENOSYS, errno.EPERM)
    return False


@pytest.mark.parametrize("policy", [_libc.MPOL_PREFERRED, _libc.MPOL_BIND])
def test_the_kernel_takes_our_calls(policy: int) -> None:
    # On a machine with one node `bind` and `node_of` need not ask; the calls must be right all the same.
    nid = numa.nodes()[-1]
    allocator = PageAllocator(2 * SLAB_SIZE, prefault=False)
    vaddr = allocator.base_vaddr
    if no_numa_calls():
        return
    _libc.mbind(vaddr, SLAB_SIZE, policy, nid)
    ctypes.memset(vaddr, 1, 1)
    assert _libc.get_mempolicy_node(vaddr) == nid
    assert _libc.move_pages([vaddr], nid) == _libc.move_pages([vaddr]) == [nid]
    assert _libc.getcpu_node() >= 0
    with pytest.raises(OSError, match="mbind"):
        _libc.mbind(allocator.base_vaddr, SLAB_SIZE, policy, 4000)


def test_other_refusals_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EFAULT, "bad")

    monkeypatch.setattr(_libc, "mbind", refuse)
    monkeypatch.setattr(_libc, "get_mempolicy_node", refuse)
    monkeypatch.setattr(_libc, "move_pages", refuse)
    monkeypatch.setattr(numa, "nodes", lambda: (0, 1))
    for call in (lambda: numa.bind(0, 4096, 1), lambda: numa.node_of(0), lambda: numa.nodes_of(0, 4096)):
        with pytest.raises(OSError, match="bad"):
            call()


def test_an_unknown_machine_has_no_numa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libc, "_SYSCALL_NUMBERS", {})
    assert numa.current_node() == 0
    with pytest.raises(OSError, match="getcpu") as refused:
        _libc.getcpu_node()
    assert refused.value.errno == errno.ENOSYS


def test_a_machine_without_sysfs_has_node_0(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(numa, "_NODE_DIR", tmp_path)
    assert numa.nodes.__wrapped__() == (0,)


def test_nodes_of_counts() -> None:
    allocator = PageAllocator(2 * SLAB_SIZE, prefault=False)
    assert numa.nodes_of(allocator.base_vaddr, 8192) == Counter({NUMA_NO_NODE: 2})

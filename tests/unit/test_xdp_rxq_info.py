# SPDX-License-Identifier: MIT
"""Registration of a receive queue, with the kernel's error numbers."""

from __future__ import annotations

import errno

import pytest

import pagepool as pp
from pagepool.xdp import MemType, XdpRxqError, XdpRxqInfo


def test_the_seed_order_of_calls() -> None:
    pool = pp.PagePool()
    users = pool.users
    rxq = XdpRxqInfo()
    assert not rxq.is_registered
    rxq.reg("eth0", 3, napi_id=7)
    rxq.reg_mem_model(MemType.PAGE_POOL, pool)
    assert (rxq.netdev, rxq.queue_index, rxq.napi_id, rxq.pool) == ("eth0", 3, 7, pool)
    assert 1 <= rxq.mem_id <= 0xFFFD
    assert "eth0" in repr(rxq)
    assert pool.users == users + 1
    rxq.unreg()
    assert not rxq.is_registered
    assert (rxq.mem_id, rxq.pool, rxq.mem_type, rxq.netdev) == (0, None, MemType.PAGE_SHARED, "")
    assert pool.users == users
    rxq.unreg()
    assert "not registered" in repr(rxq)
    pool.close()


def test_errors_are_the_kernels() -> None:
    with pp.PagePool() as pool:
        rxq = XdpRxqInfo()

        def refused(number: int, call: object, *args: object) -> None:
            with pytest.raises(XdpRxqError) as caught:
                call(*args)  # type: ignore[operator]
            assert caught.value.errno == number
            assert errno.errorcode[number] in str(caught.value)

        refused(errno.EFAULT, rxq.reg_mem_model, MemType.PAGE_POOL, pool)
        refused(errno.EFAULT, rxq.unreg_mem_model)
        refused(errno.ENODEV, rxq.reg, "", 0)
        refused(errno.EINVAL, rxq.reg, "eth0", -1)
        rxq.reg("eth0", 0)
        refused(errno.EINVAL, rxq.reg_mem_model, MemType.PAGE_POOL)
        refused(errno.EINVAL, rxq.reg_mem_model, 9, pool)
        refused(errno.EINVAL, rxq.reg_mem_model, MemType.PAGE_ORDER0, pool)
        refused(errno.EINVAL, rxq.reg_mem_model, MemType.PAGE_POOL, object())
        rxq.reg_mem_model(MemType.PAGE_POOL, pool)
        refused(errno.EEXIST, rxq.reg_mem_model, MemType.PAGE_POOL, pool)
        rxq.unreg()


def test_no_allocator_is_needed_for_plain_pages() -> None:
    rxq = XdpRxqInfo()
    rxq.reg("eth0", 0)
    rxq.reg_mem_model(MemType.PAGE_ORDER0)
    assert (rxq.mem_type, rxq.mem_id) == (MemType.PAGE_ORDER0, 0)
    rxq.unreg()


def test_register_twice_gives_the_first_pool_back() -> None:
    with pp.PagePool() as pool:
        users = pool.users
        rxq = XdpRxqInfo()
        rxq.reg("eth0", 0)
        rxq.reg_mem_model(MemType.PAGE_POOL, pool)
        rxq.reg("eth1", 1)
        assert (pool.users, rxq.netdev, rxq.pool) == (users, "eth1", None)
        rxq.unreg()


def test_ids_are_cyclic() -> None:
    with pp.PagePool() as pool:
        seen = []
        for _ in range(3):
            rxq = XdpRxqInfo()
            rxq.reg("eth0", 0)
            rxq.reg_mem_model(MemType.PAGE_POOL, pool)
            seen.append(rxq.mem_id)
            rxq.unreg()
        assert len(set(seen)) == 3

# SPDX-License-Identifier: MIT
"""Layers in front of a device: what is counted, what is kept, and what is refused."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from core_doubles import mapping, memory
from hypothesis import given
from hypothesis import strategies as st

from pagepool import Page, PagePool
from pagepool.dma import (
    Counting,
    DmaCall,
    DmaCounts,
    DmaDevice,
    DmaDir,
    DmaEvent,
    DmaLayer,
    DmaOp,
    FaultInjector,
    FaultRule,
    HostDevice,
    MapGranularity,
    Tracer,
)
from pagepool.errors import DeviceError

PAGE = 4096
RX = DmaDir.FROM_DEVICE


class Broken:
    """A device that refuses everything, in its own way."""

    name = "broken"
    granularity = MapGranularity.PAGE
    needs_sync = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def map(self, vaddr: int, size_bytes: int, dma_dir: DmaDir) -> int:
        raise self.error

    def unmap(self, dma_addr: int, size_bytes: int, dma_dir: DmaDir) -> None:
        raise self.error

    sync_for_cpu = sync_for_device = unmap


def call(device: DmaDevice, op: DmaOp, where: int = 0x1000, size_bytes: int = PAGE) -> None:
    getattr(device, op)(where, size_bytes, RX)


def passes(device: DmaDevice, op: DmaOp, times: int) -> list[bool]:
    """Make a call several times; tell which ones passed."""
    result = []
    for _ in range(times):
        try:
            call(device, op)
            result.append(True)
        except OSError:
            result.append(False)
    return result


# -- counting ------------------------------------------------------------------------------------------------


def test_counts_calls_and_bytes() -> None:
    device = Counting(HostDevice())
    assert device.counts == DmaCounts()
    dma_addr = device.map(0x10000, 4 * PAGE, RX)
    device.map(0x20000, PAGE, RX)
    device.sync_for_cpu(dma_addr, 100, RX)
    device.sync_for_device(dma_addr, 30, RX)
    device.sync_for_device(dma_addr, 3, RX)
    device.unmap(dma_addr, 4 * PAGE, RX)
    counts = device.counts
    assert counts == DmaCounts(2, 1, 1, 2, 5 * PAGE, 4 * PAGE, 100, 33, 0)
    assert (counts.mapped, counts.mapped_bytes, counts.syncs, counts.sync_bytes) == (1, PAGE, 3, 133)


@pytest.mark.parametrize("op", DmaOp)
def test_a_failure_is_counted_as_such_only(op: DmaOp) -> None:
    device = Counting(Broken(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        call(device, op)
    assert device.counts == DmaCounts(failures=1)


def test_counts_from_several_threads() -> None:
    device = Counting(HostDevice())

    def work() -> None:
        for _ in range(500):
            device.unmap(device.map(0, PAGE, RX), PAGE, RX)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (device.counts.maps, device.counts.unmaps, device.counts.mapped) == (2000, 2000, 0)


# -- tracer --------------------------------------------------------------------------------------------------


def test_keeps_calls_in_order() -> None:
    device = Tracer(HostDevice())
    device.map(0x1000, PAGE, RX)
    device.sync_for_cpu(0x1040, 64, RX)
    device.sync_for_device(0x1000, PAGE, RX)
    device.unmap(0x1000, PAGE, RX)
    assert [event.call for event in device.events] == [
        DmaCall(DmaOp.MAP, 0x1000, 0x1000, PAGE, RX),
        DmaCall(DmaOp.SYNC_FOR_CPU, None, 0x1040, 64, RX),
        DmaCall(DmaOp.SYNC_FOR_DEVICE, None, 0x1000, PAGE, RX),
        DmaCall(DmaOp.UNMAP, None, 0x1000, PAGE, RX),
    ]
    assert [event.seq for event in device.events] == [0, 1, 2, 3]
    assert [event.errno for event in device.events] == [0, 0, 0, 0]
    times = [event.time_ns for event in device.events]
    assert times == sorted(times)


def test_reads_well() -> None:
    device = Tracer(FaultInjector(HostDevice(), FaultRule(nth=2)))
    device.map(0x1000, PAGE, RX)
    with pytest.raises(OSError, match="injected"):
        device.map(0x2000, PAGE, RX)
    assert [str(event) for event in device.events] == [
        "0 map 4096 bytes FROM_DEVICE vaddr 0x1000, dma_addr 0x1000",
        "1 map 4096 bytes FROM_DEVICE vaddr 0x2000: errno 12",
    ]


@pytest.mark.parametrize(("error", "number"), [(OSError(errno.EIO, "x"), errno.EIO), (KeyError("x"), -1)])
def test_keeps_failures_and_lets_them_through(error: Exception, number: int) -> None:
    device = Tracer(Broken(error))
    for op in DmaOp:
        with pytest.raises(type(error)):
            call(device, op)
    assert [event.errno for event in device.events] == [number] * 4


@given(st.integers(1, 8), st.integers(0, 20), st.integers(0, 20))
def test_keeps_the_last_and_counts_the_rest(max_events: int, first: int, then: int) -> None:
    device = Tracer(HostDevice(), max_events=max_events)
    for i in range(first):
        device.map(i * PAGE, PAGE, RX)
    device.clear()
    assert (device.events, device.dropped) == ((), first)
    for i in range(then):
        device.map(i * PAGE, PAGE, RX)
    kept = device.events
    assert [event.seq for event in kept] == list(range(first + then))[-len(kept) :] * bool(kept)
    assert len(kept) == min(then, max_events)
    assert len(kept) + device.dropped == first + then


def test_shows_each_event() -> None:
    seen: list[DmaEvent] = []
    device = Tracer(HostDevice(), max_events=1, callback=seen.append)
    for i in range(3):
        device.map(i * PAGE, PAGE, RX)
    assert [event.call.vaddr for event in seen] == [0, PAGE, 2 * PAGE]


def test_a_callback_may_look_at_the_tracer() -> None:
    device = Tracer(HostDevice())
    lengths: list[int] = []
    device.callback = lambda event: lengths.append(len(device.events))
    device.map(0, PAGE, RX)
    assert lengths == [1]


def test_must_keep_at_least_one_event() -> None:
    with pytest.raises(ValueError, match="max_events 0"):
        Tracer(HostDevice(), max_events=0)


# -- faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", DmaOp)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [False] * 6),
        ({"nth": 1}, [False, True, True, True, True, True]),
        ({"nth": 3}, [True, True, False, True, True, True]),
        ({"every": 2}, [True, False, True, False, True, False]),
        ({"every": 2, "times": 2}, [True, False, True, False, True, True]),
        ({"times": 1}, [False, True, True, True, True, True]),
        ({"when": lambda call: call.size_bytes > PAGE}, [True] * 6),
    ],
)
def test_refuses_by_rule(op: DmaOp, rule: dict[str, int], expected: list[bool]) -> None:
    counting = Counting(HostDevice())
    device = FaultInjector(counting)
    device.fail(op, **rule)  # type: ignore[arg-type]
    assert passes(device, op, 6) == expected
    assert device.injected == expected.count(False)
    counts = counting.counts
    assert counts.maps + counts.unmaps + counts.syncs == expected.count(True)  # a refused call never arrives
    assert counts.failures == 0


@pytest.mark.parametrize("op", DmaOp)
def test_refuses_only_what_the_rule_is_about(op: DmaOp) -> None:
    device = FaultInjector(HostDevice(), FaultRule(op))
    for other in DmaOp:
        assert passes(device, other, 2) == [other is not op] * 2


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EBUSY])
def test_says_what_it_refused(number: int) -> None:
    device = FaultInjector(HostDevice("nic0"))
    device.fail("map", errno=number)
    with pytest.raises(DeviceError, match=r"map 4096 bytes .*vaddr 0x1000 .*nic0.*injected fault") as refused:
        device.map(0x1000, PAGE, RX)
    assert refused.value.errno == number


def test_a_predicate_sees_the_call() -> None:
    device = FaultInjector(HostDevice())
    device.fail(DmaOp.UNMAP, when=lambda call: call.dma_addr == 0x2000)
    device.unmap(0x1000, PAGE, RX)
    with pytest.raises(OSError, match="dma_addr 0x2000"):
        device.unmap(0x2000, PAGE, RX)


def test_rules_count_from_when_they_are_set_and_the_first_wins() -> None:
    device = FaultInjector(HostDevice(), FaultRule(nth=2, errno=errno.EIO))
    device.map(0, PAGE, RX)
    device.fail("map", nth=1, errno=errno.EBUSY)
    device.fail("map", nth=2, errno=errno.EBUSY)
    numbers = []
    for _ in range(3):
        try:
            device.map(0, PAGE, RX)
            numbers.append(0)
        except OSError as error:
            numbers.append(error.errno or -1)
    assert numbers == [errno.EIO, errno.EBUSY, 0]


def test_cleared_rules_let_calls_pass() -> None:
    device = FaultInjector(HostDevice(), FaultRule())
    assert passes(device, DmaOp.MAP, 1) == [False]
    device.clear()
    assert passes(device, DmaOp.MAP, 1) == [True]
    assert device.injected == 1


@pytest.mark.parametrize("field", ["nth", "every", "times"])
def test_a_rule_counts_from_one(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} 0"):
        FaultInjector(HostDevice()).fail("map", **{field: 0})  # type: ignore[arg-type]


def test_an_unknown_call_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="remap"):
        FaultInjector(HostDevice()).fail("remap")


@pytest.mark.parametrize("make", [Counting, Tracer, FaultInjector])
def test_a_page_that_dies_inside_a_hook_is_unmapped_there(make: Callable[[HostDevice], DmaLayer]) -> None:
    """As a collection may have it, or a reference that another thread let go of."""
    layer = make(HostDevice(granularity=MapGranularity.PAGE))
    pool = PagePool(memory=memory(), pool_size=1, **mapping(layer))
    pages = [pool.alloc_pages() for _ in range(3)]
    held = pool.inflight
    thread = threading.Thread(target=die_in_the_lock, args=(layer, pages), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for itself"
    assert pool.inflight == held - 2  # one is in the ring


def die_in_the_lock(layer: Any, pages: list[Page]) -> None:
    with layer._lock:
        pages.clear()

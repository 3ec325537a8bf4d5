# SPDX-License-Identifier: MIT
"""NAPI: the kernel's rules for when an instance is polled, sleeps, and is woken."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.errors import WrongThreadError
from pagepool.napi import NAPI_POLL_WEIGHT, Napi


class Device:
    """Work that is waiting, and a record of the budgets it was polled with."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting
        self.budgets: list[int] = []

    def poll(self, budget: int) -> int:
        self.budgets.append(budget)
        done = min(budget, self.waiting)
        self.waiting -= done
        return done


def until_true(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def test_the_budget_is_the_kernels() -> None:
    device = Device(65)
    napi = Napi(device.poll)
    assert (napi.weight, NAPI_POLL_WEIGHT) == (64, 64)
    assert napi.schedule() is True
    assert napi.run(until=lambda: device.waiting == 0) == 65
    assert device.budgets == [64, 64]


@pytest.mark.parametrize(("waiting", "scheduled"), [(64, True), (63, False), (0, False)])
def test_all_of_the_budget_keeps_it_scheduled(waiting: int, scheduled: bool) -> None:
    napi = Napi(Device(waiting).poll)
    napi.schedule()
    assert napi.poll() == waiting
    assert napi.is_scheduled is scheduled
    assert (napi.stats.full_polls, napi.stats.completions) == (int(scheduled), int(not scheduled))


def test_a_schedule_while_scheduled_is_remembered() -> None:
    napi = Napi(lambda budget: 0)
    assert napi.schedule() is True
    assert napi.schedule() is False
    assert napi.complete_done(0) is False
    assert napi.is_scheduled
    assert napi.complete_done(0) is True
    assert not napi.is_scheduled
    assert (napi.stats.missed, napi.stats.completions) == (1, 1)


def test_a_poll_may_complete_itself() -> None:
    answers = []

    def poll(budget: int) -> int:
        answers.append(napi.complete_done(1))
        if len(answers) == 1:
            napi.schedule()  # the interrupt that comes right after re-arming
        return 1

    napi = Napi(poll)
    napi.schedule()
    napi.poll()
    assert napi.is_scheduled
    napi.poll()
    assert not napi.is_scheduled
    assert answers == [True, True]


def test_an_unscheduled_poll_is_a_busy_poll() -> None:
    napi = Napi(Device(3).poll)
    assert napi.poll(2) == 2
    assert napi.is_scheduled
    assert napi.poll(2) == 1
    assert not napi.is_scheduled
    assert napi.stats.busy_polls == 1


def test_over_budget_is_reported_once() -> None:
    napi = Napi(lambda budget: budget + 1, name="greedy")
    with pytest.warns(RuntimeWarning, match="greedy.*65 of a budget of 64"):
        napi.poll()
    napi.poll()
    assert napi.stats.over_budget == 2


def test_it_sleeps_until_scheduled_by_another_thread() -> None:
    device = Device()
    napi = Napi(device.poll)
    thread = threading.Thread(target=napi.run)
    thread.start()
    until_true(lambda: napi.stats.sleeps == 1)
    for n in range(1, 20):
        device.waiting = 1
        napi.schedule()
        until_true(lambda n=n: napi.stats.work == n)  # type: ignore[misc]
    napi.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert napi.stats.wakeups >= 1
    assert napi.owner == 0
    napi.close()


def test_a_device_descriptor_wakes_it() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)

    def poll(budget: int) -> int:
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    try:
        napi = Napi(poll, fd=fd)
        os.eventfd_write(fd, 5)
        assert napi.run(until=lambda: napi.stats.work > 0, seconds=5) == 5
        assert napi.stats.fd_events == 1
        assert napi.run(seconds=0.01) == 0
        assert napi.stats.timeouts == 1
        napi.close()
        os.eventfd_write(fd, 1)  # still open
    finally:
        os.close(fd)


def test_a_descriptor_may_be_an_object() -> None:
    with open("/dev/zero", "rb") as file, pytest.raises(OSError, match="permitted"):
        Napi(lambda budget: 0, fd=file).run(seconds=0.01)  # epoll cannot watch it


def test_stop_before_the_run_ends_the_next_run() -> None:
    napi = Napi(lambda budget: budget)
    napi.schedule()
    napi.stop()
    assert napi.run() == 0
    assert napi.run(until=lambda: True) == 64


def test_a_deadline_ends_a_busy_device() -> None:
    napi = Napi(lambda budget: budget)
    napi.schedule()
    start = time.monotonic()
    assert napi.run(seconds=0.02) > 0
    assert time.monotonic() - start < 2


def test_busy_polling_does_not_sleep() -> None:
    napi = Napi(lambda budget: 0)
    napi.run(seconds=0.01, busy_poll_us=math.inf)
    assert napi.stats.sleeps == 0
    assert napi.stats.busy_polls > 1
    napi.run(seconds=0.02, busy_poll_us=100.0)
    assert napi.stats.sleeps == 1
    napi.close()


def test_one_thread_at_a_time() -> None:
    inside, go = threading.Event(), threading.Event()

    def poll(budget: int) -> int:
        inside.set()
        go.wait(5)
        return 0

    napi = Napi(poll)
    thread = threading.Thread(target=napi.poll)
    thread.start()
    inside.wait(5)
    with pytest.raises(WrongThreadError, match="run by thread"):
        napi.poll()
    with pytest.raises(WrongThreadError):
        napi.run()
    go.set()
    thread.join()
    napi.poll()


def test_an_exception_leaves_it_scheduled() -> None:
    device = Device(3)

    def poll(budget: int) -> int:
        if len(device.budgets) == 1:
            device.budgets.append(0)
            raise KeyboardInterrupt
        return device.poll(budget)

    napi = Napi(poll)
    napi.schedule()
    device.budgets.append(0)
    with pytest.raises(KeyboardInterrupt):
        napi.run(seconds=5)
    assert (napi.is_scheduled, napi.owner) == (True, 0)
    assert napi.run(until=lambda: device.waiting == 0) == 3


def test_a_poll_inside_a_run() -> None:
    def poll(budget: int) -> int:
        return 1 if budget < 64 else napi.poll(1)

    napi = Napi(poll)
    napi.schedule()
    assert napi.run(until=lambda: True) == 1


def test_closed_says_so() -> None:
    napi = Napi(lambda budget: 0, name="eth0-rx-0")
    napi.run(seconds=0.001)
    napi.close()
    napi.close()
    assert napi.schedule() is False
    with pytest.raises(ValueError, match="eth0-rx-0 is closed"):
        napi.run()
    with pytest.raises(ValueError, match="closed"):
        napi.poll()
    assert "closed" in repr(napi)
    with pytest.raises(ValueError, match="weight"):
        Napi(lambda budget: 0, weight=0)


def test_close_ends_a_sleeping_run() -> None:
    napi = Napi(lambda budget: 0)
    thread = threading.Thread(target=napi.run)
    thread.start()
    until_true(lambda: napi.stats.sleeps == 1)
    napi.close()
    thread.join(5)
    assert not thread.is_alive()


def test_no_wake_up_is_lost() -> None:
    """Producers schedule as fast as they can; whatever they put must be seen without a timeout."""
    lock = threading.Lock()
    device = Device()

    def poll(budget: int) -> int:
        with lock:
            return device.poll(budget)

    def produce() -> None:
        for _ in range(2000):
            with lock:
                device.waiting += 1
            napi.schedule()

    napi = Napi(poll, weight=3)
    threads = [threading.Thread(target=produce) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert napi.run(until=lambda: napi.stats.work == 6000, seconds=30) == 6000
    for thread in threads:
        thread.join()
    napi.close()


@given(st.lists(st.one_of(st.just("schedule"), st.just("complete"), st.integers(0, 5)), max_size=40))
def test_the_state_machine_equals_its_model(steps: list[str | int]) -> None:
    napi = Napi(lambda budget: work, weight=4)
    work = 0
    scheduled = missed = False
    for step in steps:
        if step == "schedule":
            assert napi.schedule() is not scheduled
            missed, scheduled = missed or scheduled, True
        elif step == "complete":
            assert napi.complete_done(0) is not missed
            scheduled, missed = missed, False
        else:
            work = min(int(step), 4)
            napi.poll()
            scheduled, missed = (True, missed) if work == 4 else (missed, False)
        assert napi.is_scheduled is scheduled
    assert set(napi.stats.as_dict()) >= {"polls", "work", "sleeps", "busy_polls"}

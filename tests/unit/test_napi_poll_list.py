# SPDX-License-Identifier: MIT
"""Several NAPI instances on one thread: fair turns, one sleep for all, and nobody's wake-up lost."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pagepool.errors import WrongThreadError
from pagepool.napi import Napi, PollList


class Device:
    """Work that is waiting, and who was polled when."""

    def __init__(self, name: str, log: list[str], waiting: int = 0, fd: int | None = None) -> None:
        self.name, self.log, self.waiting = name, log, waiting
        self.napi = Napi(self.poll, fd=fd, name=name)
        self.napi.schedule()

    def poll(self, budget: int) -> int:
        self.log.append(self.name)
        done = min(budget, self.waiting)
        self.waiting -= done
        return done


def test_a_busy_one_does_not_starve_the_others() -> None:
    log: list[str] = []
    busy, quiet = Device("busy", log, 10_000), Device("quiet", log, 64)
    worked = PollList([busy.napi, quiet.napi]).run(lambda: len(log) >= 8, budget=64)
    assert log[:4] == ["busy", "quiet", "busy", "quiet"]
    assert worked == 10_000 - busy.waiting + 64
    assert (busy.napi.is_scheduled, quiet.napi.is_scheduled) == (True, False)


def test_it_sleeps_until_any_of_them_is_scheduled_from_another_thread() -> None:
    log: list[str] = []
    devices = [Device(name, log) for name in "abc"]
    target = threading.Thread(target=PollList([device.napi for device in devices]).run)
    target.start()
    for device in devices * 5:
        while not all(each.napi.stats.sleeps for each in devices) or device.napi.is_scheduled:
            time.sleep(0.001)
        before, device.waiting = len(log), 1
        device.napi.schedule()
        deadline = time.monotonic() + 5
        while device.waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (device.waiting, log[before]) == (0, device.name)
    for device in devices:
        device.napi.stop()
    target.join(10)
    assert not target.is_alive()
    assert len(log) < 100


def test_a_descriptor_of_any_of_them_wakes_it() -> None:
    log: list[str] = []
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    try:
        devices = [Device(name, log, fd=fd) for name, fd in zip("ab", events, strict=True)]
        threading.Timer(0.1, os.eventfd_write, [events[1], 1]).start()
        PollList([device.napi for device in devices]).run(lambda: log.count("b") == 2)
        assert log == ["a", "b", "b"]
        stats = [device.napi.stats for device in devices]
        assert [each.fd_events for each in stats] == [0, 1]
        assert [each.timeouts for each in stats] == [0, 0]  # it was no timeout that ended a's sleep
    finally:
        for fd in events:
            os.close(fd)


def test_the_timer_of_any_of_them_ends_the_sleep() -> None:
    log: list[str] = []
    a, b = Device("a", log), Device("b", log)

    def later(budget: int) -> int:
        b.log.append("b")
        b.napi.schedule_after(0.05)
        return 0

    b.napi._poll = later
    PollList([a.napi, b.napi]).run(lambda: log.count("b") == 3)
    assert log == ["a", "b", "b", "b"]


def test_done_ones_leave_and_the_last_ends_it() -> None:
    log: list[str] = []
    devices = {device.napi: device for device in (Device("a", log, 100), Device("b", log, 300))}
    assert PollList(list(devices)).run(done=lambda napi: devices[napi].waiting == 0, budget=64) == 400


def test_an_exception_ends_it_and_nobody_owns_them_then() -> None:
    log: list[str] = []
    a, b = Device("a", log, 1), Device("b", log, 1)

    def fails(budget: int) -> int:
        raise LookupError("b")

    b.napi._poll = fails
    with pytest.raises(LookupError):
        PollList([a.napi, b.napi]).run()
    assert (a.napi.owner, b.napi.owner) == (0, 0)
    assert b.napi.is_scheduled


def test_one_that_another_thread_runs_is_refused_before_any_is_polled() -> None:
    log: list[str] = []
    free, taken = Device("free", log), Device("taken", log)
    with_it = threading.Thread(target=taken.napi.run)
    with_it.start()
    while not taken.napi.stats.sleeps:
        time.sleep(0.001)
    before = log.count("free")
    with pytest.raises(WrongThreadError):
        PollList([free.napi, taken.napi]).run()
    assert log.count("free") == before
    assert free.napi.owner == 0
    taken.napi.stop()
    with_it.join(10)


def test_busy_polling_does_not_sleep() -> None:
    log: list[str] = []
    a, b = Device("a", log), Device("b", log)
    PollList([a.napi, b.napi]).run(lambda: len(log) >= 100, busy_poll_us=1e6)
    assert a.napi.stats.sleeps == b.napi.stats.sleeps == 0

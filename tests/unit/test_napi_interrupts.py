# SPDX-License-Identifier: MIT
"""Ctrl-C is held back over a critical section and nowhere else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pagepool.drivers.loopback import LoopbackNic
from pagepool.napi import InterruptGuard


@pytest.fixture
def guard() -> Iterator[InterruptGuard]:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guard = InterruptGuard()
    guard.install()
    yield guard
    guard.uninstall()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two steps of the main thread
        pass


def test_outside_it_is_pythons_own(guard: InterruptGuard) -> None:
    assert guard.is_installed
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_inside_it_waits_for_the_end(guard: InterruptGuard) -> None:
    steps = []
    guard.enter()
    guard.enter()
    ctrl_c()
    steps.append("inner")
    guard.leave()
    steps.append("outer")
    with pytest.raises(KeyboardInterrupt):
        guard.leave()
    assert steps == ["inner", "outer"]
    guard.enter()
    guard.leave()  # raised once


def test_a_second_one_is_not_held(guard: InterruptGuard) -> None:
    guard.enter()
    ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        guard.leave()


def test_other_threads_do_not_hold_it(guard: InterruptGuard) -> None:
    entered, done = threading.Event(), threading.Event()

    def work() -> None:
        guard.enter()
        entered.set()
        done.wait(5)
        guard.leave()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(5)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    done.set()
    thread.join()


def test_another_handler_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    mine = signal.SIG_IGN
    signal.signal(signal.SIGINT, mine)
    try:
        guard = InterruptGuard()
        guard.install()
        assert signal.getsignal(signal.SIGINT) is mine
        assert not guard.is_installed
        guard.uninstall()
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_each_install_needs_an_uninstall(guard: InterruptGuard) -> None:
    guard.install()
    guard.uninstall()
    assert guard.is_installed


def test_only_the_main_thread_is_delayed(guard: InterruptGuard) -> None:
    said: list[bool] = []
    other = threading.Thread(target=lambda: said.append(guard.is_delayed()))
    other.start()
    other.join()
    assert (said, guard.is_delayed()) == ([False], True)


def test_a_queue_that_comes_back_to_the_main_thread_holds_ctrl_c_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    def receive(budget: int) -> None:
        if threading.current_thread() is threading.main_thread():
            ctrl_c()  # would end the test here, with whatever pages were in hand
        received.append(threading.current_thread().name)

    with LoopbackNic() as nic, nic.queue(0) as queue:
        monkeypatch.setattr(queue, "_receive", receive)
        other = threading.Thread(target=queue.poll, name="other")
        other.start()
        other.join()
        queue.claim()
        with pytest.raises(KeyboardInterrupt):
            queue.poll()
    assert received == ["other", "MainThread"]

# SPDX-License-Identifier: MIT
"""A thread for each queue: every frame in its own queue's thread, a clean end, and the caller hears what went wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pagepool import PagePool
from pagepool.drivers.loopback import LoopbackNic, LoopbackQueue, UdpFlows
from pagepool.drivers.loopback.sources import FrameBlock
from pagepool.drivers.queue_group import QueueGroup
from pagepool.drivers.queue_threads import QueueThreads, run_queues
from pagepool.errors import PoolBusyError, WrongThreadError
from pagepool.xdp import XdpAction, XdpBatch, XdpBuff, per_frame

FRAMES = 20_000


@pytest.fixture
def nic() -> Iterator[LoopbackNic]:
    """Two queues and no end of traffic."""
    with LoopbackNic(2, UdpFlows(64)) as nic:
        yield nic


def drop(batch: XdpBatch) -> None:
    batch.drop()


class Flows:
    """Generated flows that end when each of so many queues had a batch: no thread can take all before another runs."""

    def __init__(self, queues: int) -> None:
        self.queues = queues
        self.seen: set[int] = set()
        self.frames = 0
        self._flows = UdpFlows(64)

    def take(self, n: int) -> FrameBlock | None:
        if self.frames >= FRAMES and (len(self.seen) == self.queues or self.frames > 1000 * FRAMES):
            return None
        block = self._flows.take(n)
        assert block is not None
        self.frames += len(block.lengths)
        return block


def settled(*pools: PagePool) -> None:
    for pool in pools:
        pool.check()
        assert pool.lent == 0


def test_each_queue_is_polled_by_one_thread_of_its_own() -> None:
    seen: dict[tuple[str, int], set[int]] = {}
    taken = dict.fromkeys((0, 1), 0)

    def handler(batch: XdpBatch) -> None:
        queue = batch.driver
        assert queue.pool.is_owner
        seen.setdefault((queue.name, queue.queue), set()).add(threading.get_ident())
        taken[queue.queue] += len(batch)
        flows.seen.add(queue.queue)
        batch.drop()

    flows = Flows(2)
    with LoopbackNic(2, flows) as nic:
        queues = [nic.queue(0), nic.queue(1)]
        frames = run_queues(queues, handler)  # ends by itself: the source does
        lost = sum(queue.stats().rx_dropped for queue in queues)
        assert frames == sum(taken.values()) == flows.frames - lost
        assert all(taken.values())
        first, second = seen.values()
        assert len(first) == len(second) == 1
        assert first != second
        assert threading.get_ident() not in first | second
        pools = [queue.pool for queue in queues]
        assert pools[0] is not pools[1]
    settled(*pools)


def test_afterwards_the_queues_belong_to_the_caller_and_run_again(nic: LoopbackNic) -> None:
    queues = [nic.queue(0), nic.queue(1)]
    threads = QueueThreads(queues, drop)
    for _ in range(3):
        before = threads.frames
        assert threads.run(0.05) == threads.frames > 0
        assert before >= 0
        for queue in queues:
            batch = queue.poll()  # the fixture's thread again
            assert batch is not None
            batch.complete()


def test_threads_stay_on_their_cpus(nic: LoopbackNic) -> None:
    cpus = [max(os.sched_getaffinity(0)), min(os.sched_getaffinity(0))]
    where: dict[int, set[int]] = {}

    def handler(batch: XdpBatch) -> None:
        where[batch.driver.queue] = os.sched_getaffinity(0)
        batch.drop()

    before = os.sched_getaffinity(0)
    run_queues([nic.queue(0), nic.queue(1)], handler, seconds=0.1, cpus=cpus)
    assert where == {0: {cpus[0]}, 1: {cpus[1]}}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus": [0]},
        {"cpus": [0, 100_000]},
        {"handler": [drop]},
        {"queues": []},
        {"queues": "twice"},
    ],
    ids=str,
)
def test_bad_arguments_start_nothing(nic: LoopbackNic, wrong: dict[str, Any]) -> None:
    queues = [nic.queue(0), nic.queue(1)]
    asked: dict[str, Any] = {"queues": queues, "handler": drop} | wrong
    if asked["queues"] == "twice":
        asked["queues"] = [queues[0], queues[0]]
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"CPU|handler|queue"):
        QueueThreads(**asked).run(1)
    assert threading.active_count() == before


def test_an_exception_of_one_thread_ends_all_and_reaches_the_caller(nic: LoopbackNic) -> None:
    queues = [nic.queue(0), nic.queue(1)]

    def fails(batch: XdpBatch) -> None:
        if queues[1].xdp_stats.rx_batches > 10:
            raise LookupError("no such flow")
        batch.drop()

    with pytest.raises(LookupError, match="no such flow") as caught:
        run_queues(queues, [drop, fails])
    assert any("loop0 queue 1" in note for note in caught.value.__notes__)
    assert threading.active_count() == 1
    pools = [queue.pool for queue in queues]
    nic.close()
    settled(*pools)


def test_several_exceptions_are_one_with_a_note(nic: LoopbackNic) -> None:
    together = threading.Barrier(2, timeout=10)

    def fails(batch: XdpBatch) -> None:
        together.wait()
        raise ValueError(f"queue {batch.driver.queue}")

    with pytest.raises(ValueError, match="queue") as caught:
        run_queues([nic.queue(0), nic.queue(1)], fails)
    assert any("and then ValueError" in note for note in caught.value.__notes__)


def test_stop_from_a_handler(nic: LoopbackNic) -> None:
    def handler(batch: XdpBatch) -> None:
        batch.drop()
        if threads.frames > 1000:
            threads.stop()

    threads = QueueThreads([nic.queue(0), nic.queue(1)], handler)
    assert threads.run() > 1000
    assert not threads.is_running


def test_sleeping_threads_stop_at_once() -> None:
    """Nothing ever comes: both threads sleep without end, and still the block does."""
    with LoopbackNic(2) as nic:
        nic.exhausted = False  # it may come yet
        nic.source = None
        with QueueThreads([nic.queue(0), nic.queue(1)], drop) as threads:
            assert not threads.join(0.05)
            assert threads.is_running
        assert not threads.is_running
        assert threads.frames == 0


def test_the_block_raises_what_a_thread_raised_but_not_over_its_own(nic: LoopbackNic) -> None:
    queues = [nic.queue(0), nic.queue(1)]

    def fails(batch: XdpBatch) -> None:
        raise LookupError("thread")

    threads = QueueThreads(queues, fails)
    with pytest.raises(LookupError, match="thread"), threads:
        assert threads._ended.wait(10)
    with pytest.raises(KeyError, match="body"), QueueThreads(queues, fails):
        raise KeyError("body")
    assert threading.active_count() == 1


def test_ctrl_c_ends_all_threads_and_is_raised_in_the_main_thread(nic: LoopbackNic) -> None:
    queues = [nic.queue(0), nic.queue(1)]
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_queues(queues, drop)
    timer.join()
    assert threading.active_count() == 1
    pools = [queue.pool for queue in queues]
    nic.close()
    settled(*pools)


def test_started_twice_is_refused(nic: LoopbackNic) -> None:
    with QueueThreads([nic.queue(0)], drop) as threads, pytest.raises(RuntimeError, match="running"):
        threads.start()


def test_a_queue_that_another_thread_polls_is_refused_in_words(nic: LoopbackNic) -> None:
    queue = nic.queue(0)
    with QueueThreads([queue], drop) as running:
        while queue.napi.owner == 0:
            time.sleep(0.001)
        with pytest.raises(WrongThreadError, match="run by thread"):
            run_queues([queue], drop, seconds=10)
        before = running.frames  # and whoever runs it goes on
        while running.frames == before:
            assert not running.wait(0.001)


def test_per_frame_handlers_of_each_queue(nic: LoopbackNic) -> None:
    lengths: set[int] = set()

    def judge(buff: XdpBuff) -> XdpAction:
        lengths.add(buff.data_len)
        return XdpAction.DROP

    assert run_queues([nic.queue(0), nic.queue(1)], per_frame(judge), seconds=0.05)
    assert lengths == {60}


# -- fewer threads than queues -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fewer_threads_share_the_queues_between_them(threads: int) -> None:
    seen: dict[int, set[int]] = {}

    def handler(batch: XdpBatch) -> None:
        assert batch.driver.pool.is_owner
        seen.setdefault(threading.get_ident(), set()).add(batch.driver.queue)
        flows.seen.add(batch.driver.queue)
        batch.drop()

    flows = Flows(3)
    with LoopbackNic(3, flows) as nic:
        queues = [nic.queue(index) for index in range(3)]
        frames = run_queues(queues, handler, threads=threads)  # ends by itself
        assert frames == flows.frames - sum(queue.stats().rx_dropped for queue in queues)
        groups = [set(range(3)[number::threads]) for number in range(threads)]
        assert sorted(map(sorted, seen.values())) == sorted(map(sorted, groups))
        pools = [queue.pool for queue in queues]
    settled(*pools)


def test_one_thread_sleeps_for_all_and_each_of_them_wakes_it() -> None:
    with LoopbackNic(1, name="a") as left, LoopbackNic(1, name="b") as right:
        nics = [left, right]
        for nic in nics:
            nic.exhausted = False  # something may come yet
        queues = [nic.queue(0) for nic in nics]
        with QueueThreads(queues, drop, threads=1) as threads:
            while not all(queue.napi.stats.sleeps for queue in queues):  # until then they have no buffers
                time.sleep(0.001)
            for number in range(50):
                nics[number % 2].inject([bytes(60)] * 3)
                deadline = time.monotonic() + 5
                while threads.frames < 3 * (number + 1) and time.monotonic() < deadline:
                    time.sleep(0.0005)
                assert threads.frames == 3 * (number + 1)
        assert all(queue.napi.stats.sleeps > 0 for queue in queues)
        assert sum(queue.napi.stats.polls for queue in queues) < 1000  # it slept, it did not spin


def test_one_queue_that_stops_leaves_the_others_running(nic: LoopbackNic) -> None:
    queues = [nic.queue(0), nic.queue(1)]
    with QueueThreads(queues, drop, threads=1) as threads:
        queues[0].napi.stop()
        assert not threads.wait(0.05)
        before = queues[1].xdp_stats.rx_frames
        time.sleep(0.05)
        assert queues[1].xdp_stats.rx_frames > before
        queues[1].napi.stop()
        assert threads.wait(10)


def test_a_number_of_threads_that_makes_no_sense(nic: LoopbackNic) -> None:
    for threads in (0, 2):
        with pytest.raises(ValueError, match="1 to 1"):
            QueueThreads([nic.queue(0)] if threads == 0 else list(nic._queues.values()), drop, threads=threads)


# -- redirects from thread to thread ---------------------------------------------------------------------------------


def test_redirect_between_threads_moves_ids_and_pages_come_home() -> None:
    """Every frame of queue 0 leaves by queue 1's ring, whose thread polls too; the pages are queue 0's again."""
    flows = Flows(1)  # only queue 0's count

    def redirect(batch: XdpBatch) -> None:
        flows.seen.add(0)
        batch.redirect(target)

    with LoopbackNic(2, flows) as nic:
        source, target = queues = [nic.queue(0), nic.queue(1)]
        run_queues(queues, [redirect, drop])
        stats = source.xdp_stats
        assert stats.redirect == stats.rx_frames > 0
        assert target.stats().tx_frames == stats.redirect - stats.redirect_dropped
        assert target.copied == 0
        target.poll()
        pools = [queue.pool for queue in queues]
    settled(*pools)
    assert pools[0].stats().fresh <= 1024  # its own pages, over and over


def test_the_device_gets_the_very_addresses_that_it_wrote() -> None:
    with LoopbackNic(2, UdpFlows(64)) as nic:
        source, target = nic.queue(0), nic.queue(1)
        target.port.tx_paused = True
        seen: list[int] = []
        while (batch := source.poll()) is None or len(batch) == 0:
            pass
        with batch:
            seen += batch.dma_addr.tolist()
            batch.redirect(target)
        ring = target.port.tx
        assert ring.dma_addr[: len(seen)].tolist() == seen
        target.port.tx_paused = False
        target.xdp_flush()
    settled(source.pool, target.pool)


def test_closing_a_queue_that_others_redirect_to_loses_no_page() -> None:
    """Over and over, while another thread sends as fast as it can: what was posted goes home, the rest is counted."""
    with LoopbackNic(1, UdpFlows(64), name="in") as near, LoopbackNic(1, name="out") as far:
        source = near.queue(0)
        targets: list[LoopbackQueue] = [far.queue(0)]
        with QueueThreads([source], lambda batch: batch.redirect(targets[-1])):
            for _ in range(200):
                targets[-1].close()
                targets.append(far.queue(0))
                time.sleep(0.0005)
        stats = source.xdp_stats
        # What was posted and not yet sent went home with its ring.
        assert 0 < targets[-1].port.stats.tx_frames <= stats.redirect - stats.redirect_dropped
        pool = source.pool
    settled(pool, *(target.pool for target in targets))


def test_a_close_waits_for_the_redirect_of_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caught between the look at whether the target is open and the post: the pages must not stay in its dead ring."""
    with LoopbackNic(1, UdpFlows(64), name="in") as near, LoopbackNic(1, name="out") as far:
        source, target = near.queue(0), far.queue(0)
        target.port.tx_paused = True
        inside, post = threading.Event(), target._post

        def slow_post(*args: Any) -> int:
            inside.set()
            time.sleep(0.2)
            return post(*args)

        monkeypatch.setattr(target, "_post", slow_post)

        def redirect(batch: XdpBatch) -> None:
            batch.redirect(target)

        with QueueThreads([source], redirect):
            assert inside.wait(10)
            target.close()
        assert source.xdp_stats.redirect > source.xdp_stats.redirect_dropped > 0
        pool = source.pool
    settled(pool, target.pool)


def test_the_target_dies_in_its_thread_and_the_source_goes_on(nic: LoopbackNic) -> None:
    """The target's handler raises: all end, and its ring has given every page back once it is closed."""
    source, target = queues = [nic.queue(0), nic.queue(1)]

    def dies(batch: XdpBatch) -> None:
        if source.xdp_stats.redirect > 1000:
            target.port.tx_paused = True
            raise OSError("target")

    with pytest.raises(OSError, match="target"):
        run_queues(queues, [lambda batch: batch.redirect(target), dies])
    while source.xdp_stats.redirect_dropped == 0:  # the ring is full now: counted, nothing lost
        batch = source.poll()
        if batch is not None:
            with batch:
                batch.redirect(target)
    pools = [queue.pool for queue in queues]
    for pool in pools:
        pool.check()
    target.close()
    source.close()
    settled(*pools)


def test_a_group_closes_all_whatever_one_of_them_says() -> None:
    with LoopbackNic(3) as nic:
        group = QueueGroup(nic.queue(index) for index in range(3))

        def refuse() -> None:
            raise PoolBusyError("busy")

        group[1].close = refuse  # type: ignore[method-assign]
        with pytest.raises(PoolBusyError):
            group.close()
        assert [queue.closed for queue in group] == [True, False, True]
        del group[1].close
        with group:
            pass
        assert all(queue.closed for queue in group)


def test_ids_of_a_batch_are_numpys_to_read_in_any_thread(nic: LoopbackNic) -> None:
    sizes: list[int] = []

    def handler(batch: XdpBatch) -> None:
        sizes.append(int(np.count_nonzero(batch.headers(42)[:, 23] == 17)))
        batch.drop()

    frames = run_queues([nic.queue(0), nic.queue(1)], handler, seconds=0.05)
    assert sum(sizes) == frames

# SPDX-License-Identifier: MIT
"""The software NIC and its driver: every frame counted, every page accounted for, nothing slow in the steady state."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagepool as pp
from pagepool.drivers.capture import CaptureError, PcapngWriter, read_capture
from pagepool.drivers.loopback import NUMBER_AT, LoopbackNic, LoopbackQueue, UdpFlows, make_pool
from pagepool.drivers.rx_queue import QueueClosedError
from pagepool.errors import DeviceError, WrongThreadError
from pagepool.xdp import XdpAction, XdpBatch, per_frame


def frames(n: int, size: int = 60) -> list[bytes]:
    return [i.to_bytes(2, "big") * (size // 2) for i in range(n)]


def posted(queue: LoopbackQueue) -> int:
    return queue.port.rx.tail - queue._rx.clean


def test_every_generated_frame_arrives_once_and_in_order() -> None:
    numbers: list[int] = []
    with LoopbackQueue(UdpFlows(count=5000)) as queue:
        assert queue.run(lambda batch: numbers.extend(batch.headers(60).field(NUMBER_AT, ">u4").tolist())) == 5000
        queue.pool.check()
    assert numbers == list(range(5000))


def test_a_million_frames_and_nothing_slow() -> None:
    """Once warm: no page allocator call, no map, no fresh page, no sleep; and it is quick."""
    memory_calls: list[tuple[int, ...]] = []
    with LoopbackQueue(UdpFlows(count=1_000_000, udp_share=0.9)) as queue:
        pool = queue.pool

        def handler(batch: XdpBatch) -> None:
            batch.drop(batch.headers(42)[:, 23] == 17)
            if queue.xdp_stats.rx_batches in (100, 15_000):
                stats = pool.stats()
                memory_calls.append((pool.arena.alloc_calls, pool.arena.free_calls, stats.fresh, stats.maps))

        start = time.process_time()
        assert queue.run(handler) == 1_000_000
        assert time.process_time() - start < 20
        stats = queue.stats()
        assert (stats.rx_frames, stats.rx_dropped, stats.alloc_failed) == (1_000_000, 0, 0)
        assert stats.xdp["drop"] + stats.xdp["none"] == 1_000_000
        assert 0.85 < stats.xdp["drop"] / 1e6 < 0.95
        assert stats.napi["sleeps"] == 0
        assert stats.pool.allocated > 1_000_000
        pool.check()
    assert len(memory_calls) == 2
    assert memory_calls[0] == memory_calls[1]
    assert pool.lent == 0


def test_step_is_exact_and_a_full_ring_drops() -> None:
    with LoopbackQueue(UdpFlows(), rx_ring=64) as queue:
        queue.nic.pull = False
        assert queue.poll() is None  # the first poll posts the buffers
        assert queue.nic.step(10) == 10
        batch = queue.poll()
        assert batch is not None
        assert len(batch) == 10
        assert queue.nic.step(100) == 54  # 64 descriptors, 10 of them with frames
        assert queue.stats().rx_dropped == 46
        assert len(queue.poll() or ()) == 54
        assert queue.poll() is None
        assert queue.nic.step(64) == 64


def test_the_budget_is_kept() -> None:
    with LoopbackQueue(frames(100)) as queue:
        sizes = [len(batch) for batch in queue.poll_forever(budget=30)]
    assert sizes == [30, 30, 30, 10]


def test_verdicts_reach_wire_and_stack() -> None:
    wire: list[bytes] = []
    stack: list[bytes] = []
    with LoopbackQueue(frames(9), wire=wire, stack=stack.append) as queue:
        for batch in queue.poll_forever():
            kind = np.arange(len(batch)) % 3
            batch.tx(kind == 0)
            batch.pass_(kind == 1)
        stats = queue.stats()
        assert queue.pool.lent == posted(queue)
    assert wire == frames(9)[0::3]
    assert stack == frames(9)[1::3]
    assert (stats.tx_frames, stats.tx_bytes, stats.xdp["tx"], stats.xdp["passed"], stats.xdp["none"]) == (
        3,
        180,
        3,
        3,
        3,
    )


def test_headers_are_rewritten_in_place() -> None:
    wire: list[bytes] = []
    with LoopbackQueue(frames(3), wire=wire) as queue:
        for batch in queue.poll_forever():
            headers = batch.headers(12)
            headers[:, 0:6], headers[:, 6:12] = headers[:, 6:12], headers[:, 0:6]
            headers[1:, 0] = 0xEE
            batch.tx()
    assert [frame[0] for frame in wire] == [0, 0xEE, 0xEE]


def test_a_full_transmit_ring_recycles_and_counts() -> None:
    wire: list[bytes] = []
    with LoopbackQueue(frames(32), wire=wire, tx_ring=8) as queue:
        queue.port.tx_paused = True
        batch = queue.poll()
        assert batch is not None
        batch.tx()
        batch.complete()
        assert (queue.xdp_stats.tx, queue.xdp_stats.tx_dropped) == (32, 24)
        assert queue.pool.lent == posted(queue) + 8
        assert queue.port.transmit(3) == 3
        queue.poll()
        assert queue.pool.lent == posted(queue) + 5
        queue.pool.check()
    assert wire == frames(3)
    assert queue.pool.lent == 0


def test_redirect_sends_from_another_queue_and_comes_home() -> None:
    out: list[bytes] = []
    with LoopbackQueue(frames(20), name="in0") as queue, LoopbackQueue(name="out0", wire=out, tx_ring=8) as other:
        assert other.pool is not queue.pool
        for batch in queue.poll_forever(budget=10):
            batch.redirect(other, slice(0, 9))
        assert out == frames(20)[0:8] + frames(20)[10:18]
        assert (queue.xdp_stats.redirect, queue.xdp_stats.redirect_dropped) == (18, 2)
        assert queue.pool.lent == posted(queue)
        assert other.pool.lent == 0
        other.close()
        queue.nic.inject(frames(2))
        batch = queue.poll()
        assert batch is not None
        batch.redirect(other)
        batch.complete()
        assert queue.xdp_stats.redirect_dropped == 4


def test_redirected_frames_survive_their_own_queue() -> None:
    out: list[bytes] = []
    with LoopbackQueue(name="out0", wire=out) as other:
        other.port.tx_paused = True
        queue = LoopbackQueue(frames(5))
        pool = queue.pool
        batch = queue.poll()
        assert batch is not None
        batch.redirect(other)
        queue.close()
        assert pool.lent == 5
        other.port.tx_paused = False
        other._flush()
        assert pool.lent == 0
    assert out == frames(5)


def test_a_raising_wire_loses_nothing() -> None:
    def broken(frame: bytes) -> None:
        raise OSError("cable is out")

    with LoopbackQueue(frames(128), wire=broken) as queue, LoopbackQueue(name="out0", wire=broken) as other:
        for _ in range(2):
            batch = queue.poll()
            assert batch is not None
            batch.redirect(other, slice(0, 20))
            batch.tx(slice(20, 40))
            with pytest.raises(OSError, match="cable"):
                batch.complete()
            assert batch.completed
            assert other.poll() is None
            queue.pool.check()
        assert queue.poll() is None
        assert (queue.xdp_stats.tx, queue.xdp_stats.redirect) == (40, 40)
        assert queue.pool.lent == posted(queue)


def test_a_damaged_capture_gives_its_frames_and_then_its_error(tmp_path: Any) -> None:
    path = tmp_path / "cut.pcapng"
    with PcapngWriter(path) as writer:
        writer.write_frames(frames(10))
    path.write_bytes(path.read_bytes()[:-5])
    with LoopbackQueue(path) as queue:
        seen = []
        with pytest.raises(CaptureError, match=r"truncated|ends"):
            queue.run(lambda batch: seen.append(len(batch)))
        assert seen == [9]
        assert queue.run(print) == 0
        assert queue.pool.lent == posted(queue)


def test_two_nics_on_one_cable() -> None:
    with LoopbackNic(name="b0") as b, LoopbackNic(source=frames(70), wire=b, name="a0") as a:
        left, right = a.queue(0), b.queue(0)
        assert right.poll() is None
        for batch in left.poll_forever():
            batch.tx()
        received = []
        while (batch := right.poll()) is not None:  # type: ignore[assignment]
            received += [bytes(batch.frame(i)) for i in range(len(batch))]
        assert received == frames(70)


def test_kept_pages_starve_the_ring_and_their_return_feeds_it() -> None:
    pool = make_pool(64, limit=64)
    kept: list[Any] = []
    with pool, LoopbackQueue(UdpFlows(), pool=pool, rx_ring=64) as queue:

        def keep_all(batch: XdpBatch) -> None:
            kept.extend(batch.keep())

        assert queue.run(keep_all, seconds=0.05) == 64
        assert (len(kept), pool.lent) == (64, 64)
        assert queue.stats().alloc_failed >= 1
        assert queue.napi.stats.sleeps >= 1  # it waits, it does not spin
        assert queue.stats().rx_dropped == 0
        assert [int.from_bytes(memoryview(page)[NUMBER_AT : NUMBER_AT + 4], "big") for page in kept] == list(range(64))
        kept.clear()
        assert queue.run(lambda batch: None, seconds=5, until=lambda: queue.xdp_stats.rx_frames > 500) >= 400
        pool.check()
    assert pool.lent == 0


def test_pages_that_are_kept_outlive_the_queue() -> None:
    with LoopbackQueue(frames(2)) as queue:
        batch = queue.poll()
        assert batch is not None
        (page,) = batch.keep([1])
        view = memoryview(page)
        del page
    pool = queue.pool
    assert (pool.closed, pool.lent) == (True, 1)
    assert bytes(view) == frames(2)[1]
    view.release()
    gc.collect()
    assert pool.lent == 0


def test_rss_keeps_flows_together() -> None:
    with LoopbackNic(4, UdpFlows(64, count=4096)) as nic:
        queues = [nic.queue(i) for i in range(4)]
        seen: list[set[int]] = [set() for _ in queues]
        total = 0
        while not nic.exhausted or any(queue.port.rx.head != queue._rx.clean for queue in queues):
            for queue, flows in zip(queues, seen, strict=True):
                batch = queue.poll()
                if batch is not None:
                    total += len(batch)
                    flows.update(batch.headers(42).field(28, ">u2").tolist())
        dropped = sum(queue.stats().rx_dropped for queue in queues)
        assert total + dropped == 4096
        assert all(seen)
        assert sum(map(len, seen)) == len(set().union(*seen)) == 64
        with pytest.raises(ValueError, match="open already"):
            nic.queue(1)
        with pytest.raises(ValueError, match="no queue 4"):
            nic.queue(4)


def test_one_thread_per_queue() -> None:
    with LoopbackNic(2, UdpFlows(256, count=100_000), rx_ring=1024) as nic:
        queues = [nic.queue(i) for i in range(2)]
        threads = [threading.Thread(target=queue.run, args=(lambda batch: batch.drop(),)) for queue in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        stats = [queue.stats() for queue in queues]
        assert sum(s.rx_frames + s.rx_dropped for s in stats) == 100_000
        assert sum(s.xdp["drop"] for s in stats) == sum(s.rx_frames for s in stats)
        for queue in queues:
            queue.pool.check()


def test_a_capture_file_in_and_out(tmp_path: Any) -> None:
    path, sent = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    with PcapngWriter(path) as writer:
        writer.write_frames(frames(100))
    with PcapngWriter(sent) as writer, LoopbackQueue(path, wire=writer) as queue:
        assert queue.run(lambda batch: batch.tx(slice(0, 1))) == 100
    assert [frame.data for frame in read_capture(sent)] == [frames(100)[0], frames(100)[64]]


def test_lengths_differ_and_odd_ones_are_refused() -> None:
    sizes = [1, 60, 0, 3840, 3841, 1514, 9000]
    with LoopbackQueue([bytes([n % 251]) * size for n, size in enumerate(sizes)]) as queue:
        batch = queue.poll()
        assert batch is not None
        assert batch.lengths.tolist() == [1, 60, 3840, 1514]
        assert [bytes(batch.frame(i))[0] for i in range(4)] == [0, 1, 3, 5]
        assert queue.stats().rx_length_errors == 3
    with make_pool(8, order=2, offset=0, max_len=0) as pool, LoopbackQueue([bytes(9000)], pool=pool) as queue:
        batch = queue.poll()
        assert batch is not None
        assert batch.lengths.tolist() == [9000]
        assert batch.headers(9000)[0, 8999] == 0
        queue.close()


def test_a_pool_that_does_not_fit() -> None:
    with pp.PagePool() as pool, pytest.raises(ValueError, match="DMA_MAP"):
        LoopbackQueue(pool=pool)
    with pytest.raises(ValueError, match="LoopbackNic"):
        LoopbackQueue(frames(1), nic=LoopbackNic())
    with pytest.raises(ValueError, match="power of two"):
        LoopbackQueue(rx_ring=100)
    with pytest.raises(ValueError, match="queues"):
        LoopbackNic(0)
    for bad in (5, b"one frame", object()):
        with pytest.raises(TypeError):
            LoopbackQueue(bad)
    with pytest.raises(TypeError):
        LoopbackQueue(wire=5)
    with make_pool(64, dma_dir=pp.DmaDir.FROM_DEVICE) as pool, LoopbackQueue(frames(2), pool=pool) as queue:
        batch = queue.poll()
        assert batch is not None
        batch.tx()
        with pytest.raises(DeviceError, match="BIDIRECTIONAL"):
            batch.complete()
        assert (queue.xdp_stats.tx_dropped, pool.lent) == (2, posted(queue))


def test_a_raising_handler_loses_nothing() -> None:
    wire: list[bytes] = []
    with LoopbackQueue(frames(128), wire=wire) as queue:

        def handler(batch: XdpBatch) -> None:
            batch.tx([0])
            raise LookupError("no such route")

        for n in (1, 2):
            with pytest.raises(LookupError):
                queue.run(handler)
            assert len(wire) == n
            queue.pool.check()
            assert queue.pool.lent == posted(queue)
        assert queue.run(handler) == 0


def test_per_frame_on_a_queue() -> None:
    with LoopbackQueue(frames(10)) as queue:
        queue.run(per_frame(lambda buff: XdpAction.DROP if buff.data[1] % 2 else XdpAction.PASS))
        assert (queue.xdp_stats.drop, queue.xdp_stats.passed) == (5, 5)


def test_a_queue_belongs_to_one_thread() -> None:
    with LoopbackQueue(UdpFlows()) as queue:
        queue.poll()
        caught: list[BaseException] = []

        def other() -> None:
            try:
                queue.poll()
            except BaseException as error:
                caught.append(error)
            queue.claim()
            assert queue.poll() is not None

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert isinstance(caught[0], WrongThreadError)
        with pytest.raises(WrongThreadError, match="claim"):
            queue.poll()


def test_stop_from_another_thread() -> None:
    with LoopbackQueue() as queue:
        batches: list[int] = []
        thread = threading.Thread(target=lambda: batches.extend(len(b) for b in queue.poll_forever()))
        thread.start()
        deadline = time.monotonic() + 5
        while queue.napi.stats.sleeps == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert queue.nic.inject(frames(5)) == 5
        while not batches and time.monotonic() < deadline:
            time.sleep(0.001)
        queue.napi.stop()
        thread.join(5)
        assert not thread.is_alive()
        assert batches == [5]


def test_poll_forever_ends_after_silence() -> None:
    with LoopbackQueue() as queue:
        assert list(queue.poll_forever(timeout=0.01)) == []
        assert list(queue.poll_forever(timeout=0.01, busy_poll_us=2000)) == []
        assert queue.napi.stats.busy_polls > 1


def test_a_descriptor_for_other_loops() -> None:
    with LoopbackQueue() as queue:
        fd = queue.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while poller.poll(0):
            assert queue.poll() is None
        queue.nic.inject(frames(1))
        assert poller.poll(1000)
        assert len(queue.poll() or ()) == 1
        assert queue.poll() is None
        assert not poller.poll(0)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_close_completes_what_is_alive() -> None:
    wire: list[bytes] = []
    queue = LoopbackQueue(frames(4), wire=wire)
    batch = queue.poll()
    assert batch is not None
    batch.tx([3])
    assert "loop0 queue 0" in repr(queue)
    assert queue.rxq.is_registered
    queue.close()
    queue.close()
    assert (wire, batch.completed, queue.pool.lent, queue.pool.closed) == ([frames(4)[3]], True, 0, True)
    assert not queue.rxq.is_registered
    for use in (queue.poll, lambda: next(queue.poll_forever()), lambda: queue.run(print)):
        with pytest.raises(QueueClosedError, match="closed"):
            use()


def test_a_forgotten_queue_says_so_and_leaks_nothing() -> None:
    with make_pool(64) as pool:
        queue: LoopbackQueue | None = LoopbackQueue(frames(4), pool=pool, rx_ring=64)
        assert queue is not None
        assert queue.poll() is not None
        assert pool.lent == 64
        queue = None
        with pytest.warns(ResourceWarning, match="never closed"):
            gc.collect()
        assert pool.lent == 0


def test_ctrl_c_anywhere_loses_nothing() -> None:
    """A timer sends SIGINT at odd moments; after each the pool is whole and the run goes on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = 0
    try:
        with LoopbackQueue(UdpFlows(), wire=lambda frame: None, rx_ring=64, tx_ring=64) as queue:
            pool = queue.pool

            def handler(batch: XdpBatch) -> None:
                batch.tx(slice(0, 40))
                for page in batch.keep([50, 51]):
                    page.put()

            for n in range(60):
                timer = threading.Timer(0.0005 + n * 0.00007, os.kill, (os.getpid(), signal.SIGINT))
                try:
                    timer.start()
                    queue.run(handler, seconds=1)
                except KeyboardInterrupt:
                    interrupted += 1
                timer.join()
                batch = queue.poll()
                assert batch is not None
                batch.complete()
                pool.check()
                assert pool.lent == posted(queue)
            stats = queue.xdp_stats
            assert stats.rx_frames == stats.tx + stats.none + stats.keep + stats.drop
        assert interrupted == 60
        assert pool.lent == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


class AnyOrder(RuleBasedStateMachine):
    """Whatever is called in whatever order, each page is in exactly one place and each frame has exactly one fate."""

    @initialize(rx=st.sampled_from([8, 64]), tx=st.sampled_from([8, 16]), limit=st.sampled_from([0, 40, 100]))
    def open(self, rx: int, tx: int, limit: int) -> None:
        self.pool = make_pool(32, limit=limit)
        self.wire: list[bytes] = []
        self.stack: list[bytes] = []
        self.nic = LoopbackNic(wire=self.wire, rx_ring=rx, tx_ring=tx)
        self.queue = self.nic.queue(0, pool=self.pool, stack=self.stack)
        self.other = LoopbackQueue(tx_ring=8)
        self.batch: XdpBatch | None = None
        self.kept: list[Any] = []
        self.next = 0
        self.injected = 0

    @rule(n=st.integers(1, 80), size=st.integers(14, 200))
    def inject(self, n: int, size: int) -> None:
        self.nic.inject([(self.next + i).to_bytes(4, "big") + bytes(size) for i in range(n)])
        self.next += n
        self.injected += n

    @rule(budget=st.integers(1, 70))
    def poll(self, budget: int) -> None:
        self.batch = self.queue.poll(budget)
        assert self.batch is None or 0 < len(self.batch) <= budget

    @precondition(lambda self: self.batch is not None and not self.batch.completed)
    @rule(
        verb=st.sampled_from(["drop", "tx", "pass_", "redirect", "keep", "complete"]),
        mask=st.none() | st.integers(0, 2**70),
    )
    def judge(self, verb: str, mask: int | None) -> None:
        batch = self.batch
        assert batch is not None
        chosen = None if mask is None else np.array([mask >> i & 1 for i in range(len(batch))], bool)
        if verb == "complete":
            batch.complete()
        elif verb == "redirect":
            batch.redirect(self.other, chosen)
        elif verb == "keep":
            self.kept += batch.keep(chosen)
        else:
            getattr(batch, verb)(chosen)

    @rule(paused=st.booleans(), which=st.booleans())
    def pause(self, paused: bool, which: bool) -> None:
        (self.queue if which else self.other).port.tx_paused = paused

    @rule(n=st.integers(1, 20), which=st.booleans())
    def send(self, n: int, which: bool) -> None:
        (self.queue if which else self.other).port.transmit(n)

    @precondition(lambda self: self.kept)
    @rule(n=st.integers(1, 10))
    def put(self, n: int) -> None:
        del self.kept[:n]

    @invariant()
    def everything_is_somewhere(self) -> None:
        self.pool.check()
        alive = 0
        if self.batch is not None and not self.batch.completed:
            kept = self.batch.kept_or_none
            alive = len(self.batch) - (0 if kept is None else int(kept.sum()))
        sending = sum(q.port.tx.tail - q._tx.clean for q in (self.queue, self.other))
        assert self.pool.lent == posted(self.queue) + alive + sending + len(self.kept)
        stats = self.queue.stats()
        assert self.injected == stats.rx_frames + stats.rx_dropped + stats.rx_length_errors
        judged = sum(stats.xdp[k] for k in ("aborted", "drop", "passed", "tx", "redirect", "keep", "none"))
        assert judged == stats.xdp["rx_frames"]

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.other.close()
            self.kept.clear()
            assert self.pool.lent == 0
            self.pool.close()
            numbers = [int.from_bytes(f[:4], "big") for f in self.wire + self.stack]
            assert len(set(numbers)) == len(numbers)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

# SPDX-License-Identifier: MIT
"""However an `AfXdpQueue` ends, no page is lost, nothing hangs and the interface is free again."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from queues import SMALL, frame_to_near, take

from pagepool.drivers.af_xdp import AfXdpQueue, QueueClosedError
from pagepool.errors import DeviceError, WrongThreadError
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]

HERE = Path(__file__).parent


def wait_until_free(timeout: float = 3.0) -> None:
    """Open and close the queue, as soon as the kernel has let go of it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            AfXdpQueue("near", **SMALL).close()
            return
        except DeviceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_open_and_close_leave_no_descriptor_and_no_memory(veth: VethPair) -> None:
    AfXdpQueue("near", **SMALL).close()
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with AfXdpQueue("near", **SMALL) as queue:
            assert queue.poll() is None
        assert queue.pool.inflight == 0
    del queue
    gc.collect()  # a memory file goes with the last that could look into it
    assert set(os.listdir("/proc/self/fd")) == before


FORGOTTEN = """
import gc, sys, time, warnings
from pagepool.drivers.af_xdp import AfXdpQueue

gc.disable()
queue = AfXdpQueue("near", rx_ring=256, tx_ring=256)
print("open", flush=True)
while (batch := queue.poll()) is None:
    time.sleep(0.001)
batch.tx()
queue.me, queue.batch, pool = queue, batch, queue.pool
# What the collector finds by way of something else it moves behind what it finds at once: now the queue is behind its
# socket, and so is its finalizer, as in any order that another Python may take.
box, socket = [queue], queue.parts.socket
del queue, batch
gc.collect()
del box, socket
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    gc.collect()
assert any("was never closed" in str(warning.message) for warning in seen), seen
assert pool.lent == 0, pool.lent
pool.check()
"""


def test_a_forgotten_queue_whose_socket_ends_first(veth: VethPair) -> None:
    command = [sys.executable, "-c", FORGOTTEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
            generator.send(100)
            _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors


def test_close_with_frames_in_every_ring(veth: VethPair) -> None:
    with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        for taken in (0, 10, 64):
            queue = AfXdpQueue("near", **SMALL)
            generator.send(200)
            if taken:
                batch = queue.poll(taken)
                assert batch is not None
                batch.tx(slice(0, taken // 2))
            queue.close()
            assert queue.pool.lent == queue.pool.inflight == 0
            queue.pool.check()


def test_frames_that_were_to_be_sent_are_sent_before_the_end(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    with veth.far.ns, AfXdpQueue("far", **SMALL) as far:
        with veth.near.ns, AfXdpQueue("near", **SMALL) as near, LiveGenerator(veth.far, frame) as generator:
            generator.send(100)
            assert len(take(near, 100, XdpBatch.tx)) == 100
        assert len(take(far, 100)) == 100


@pytest.mark.parametrize("how", ["poll", "wait", "poll_forever", "run"])
def test_an_interface_that_vanishes_is_an_error_not_a_hang(veth: VethPair, how: str) -> None:
    frame = frame_to_near(veth)
    queue = AfXdpQueue("near", **SMALL)
    with LiveGenerator(veth.far, frame) as generator:
        generator.send(300)
        batch = queue.poll(50)
        assert batch is not None
        batch.tx()
        kept = batch.keep([3, 4])
        threading.Timer(0.2, veth.delete).start()

        def poll_until_it_raises() -> None:
            while True:
                queue.poll()

        def wait_until_it_raises() -> None:
            while True:
                take(queue, 1000, timeout=0.01)
                queue.napi.wait(5)

        actions = {
            "poll": poll_until_it_raises,
            "wait": wait_until_it_raises,
            "poll_forever": lambda: list(queue.poll_forever()),
            "run": lambda: queue.run(XdpBatch.tx),
        }
        start = time.monotonic()
        with pytest.raises(DeviceError, match="ENETDOWN; the interface is gone"):
            actions[how]()
        assert time.monotonic() - start < 3
    queue.close()
    assert queue.pool.lent == 2
    assert bytes(memoryview(kept[0])) == frame
    kept.clear()
    assert queue.pool.lent == queue.pool.inflight == 0
    queue.pool.check()


def test_down_and_up_again_is_no_end(veth: VethPair) -> None:
    from pyroute2 import IPRoute

    def set_state(state: str) -> None:
        with veth.near.ns, IPRoute() as route:
            route.link("set", index=veth.near.ifindex, state=state)

    frame = frame_to_near(veth)
    with AfXdpQueue("near", **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        generator.send(10)
        batch = queue.poll(10)
        assert batch is not None
        set_state("down")
        batch.tx()
        batch.complete()
        for _ in range(1000):
            assert queue.poll() is None
        set_state("up")
        generator.send(10)
        assert len(take(queue, 10)) == 10
    assert queue.pool.lent == 0


SCRIPT = """
import sys, time
from queues import SMALL
from pagepool.drivers.af_xdp import AfXdpQueue, QueueClosedError
queue = AfXdpQueue("near", **SMALL)
print("open", flush=True)
for batch in queue.poll_forever():
    batch.tx()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_consumer_frees_the_interface(veth: VethPair, number: signal.Signals) -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process,
        LiveGenerator(veth.far, frame_to_near(veth)) as generator,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(DeviceError, match="EBUSY"):
            AfXdpQueue("near", **SMALL)
        generator.send(10_000)
        process.send_signal(number)
        process.wait(5)
    wait_until_free()


def test_a_forked_child_loses_the_queue_and_the_parent_keeps_it(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    queue = AfXdpQueue("near", **SMALL)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # lives longer than the parent's queue
        try:
            try:
                queue.poll()
            except QueueClosedError as error:
                os.write(write_end, str(error).encode())
            queue.close()
            time.sleep(30)
        finally:
            os._exit(0)
    try:
        with LiveGenerator(veth.far, frame) as generator:
            assert b"of the parent process" in os.read(read_end, 200)
            generator.send(100)
            assert take(queue, 100) == [frame] * 100
        queue.close()
        assert queue.pool.lent == 0
        wait_until_free()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_ctrl_c_loses_no_page(veth: VethPair) -> None:
    """Hundreds of interrupts at random moments of polling, judging and sending, one at a time."""
    main = threading.main_thread().ident
    assert main is not None
    nr_interrupts = nr_wanted = 0  # counted, for an interrupt in Event.set() can leave its lock locked
    done = False

    def interrupt() -> None:
        nr_sent = 0
        while not done:
            time.sleep(random.uniform(0.001, 0.004))
            if nr_wanted > nr_sent:
                nr_sent += 1
                signal.pthread_kill(main, signal.SIGINT)

    queue = AfXdpQueue("near", **SMALL)
    with LiveGenerator(veth.far, frame_to_near(veth), rate_pps=100_000) as generator:
        generator.start()
        thread = threading.Thread(target=interrupt)
        thread.start()
        while nr_interrupts < 300:
            try:
                nr_wanted = nr_interrupts + 1
                for batch in queue.poll_forever(timeout=5):
                    batch.tx(slice(0, None, 3))
            except KeyboardInterrupt:
                nr_interrupts += 1
        done = True
        thread.join()
        generator.stop()
    take(queue, 10**6, timeout=0.2)  # also settles the batch that the last interrupt left in our hands
    stats = queue.stats()
    # No page but those in the rings is out: nothing was lost on the way.
    assert stats.pool.lent <= stats.rings.nr_fill + stats.rings.nr_rx + stats.rings.nr_tx_outstanding + 1
    queue.close()
    assert queue.pool.lent == queue.pool.inflight == 0
    queue.pool.check()


def test_closing_under_a_polling_thread_ends_it(veth: VethPair) -> None:
    queue = AfXdpQueue("near", **SMALL)
    ended: list[BaseException] = []

    def poll() -> None:
        try:
            for batch in queue.poll_forever(budget=256):
                batch.drop()
        except BaseException as error:
            ended.append(error)

    with LiveGenerator(veth.far, frame_to_near(veth)) as generator:
        generator.start()
        thread = threading.Thread(target=poll)
        thread.start()
        time.sleep(0.2)
        queue.close()
        thread.join(2)
        generator.stop()
    assert not thread.is_alive()
    # Between two polls the loop just ends; inside one it hears why.
    assert all(isinstance(error, (QueueClosedError, WrongThreadError, ValueError)) for error in ended)
    assert queue.pool.lent == 0
    queue.pool.check()

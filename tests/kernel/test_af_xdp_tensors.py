# SPDX-License-Identifier: MIT
"""Frames of an interface as tensors, in the UMEM they were received into: none is copied, and each page comes home."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from queues import SMALL, frame_to_near, settled, take

from pagepool.drivers.af_xdp import AfXdpQueue
from pagepool.testing.generator import LiveGenerator
from pagepool.testing.veth import VethPair
from pagepool.xdp import XdpBatch

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_netns, pytest.mark.needs_af_xdp]


def test_a_tensor_is_the_page_that_the_kernel_wrote(veth: VethPair) -> None:
    frame = frame_to_near(veth)
    held: list[Any] = []

    def look(batch: XdpBatch) -> None:
        pool = batch.driver.pool
        for i in range(len(batch)):
            array = np.from_dlpack(batch[i])
            at = pool.arena.base_vaddr + (int(batch.ids[i]) << 12) + int(batch.offsets[i])
            assert array.ctypes.data == at
            held.append(array)
        rows = np.from_dlpack(batch.driver.memory)
        offset = int(batch.offsets[0])
        assert (rows[batch.ids, offset : offset + len(frame)] == np.frombuffer(frame, np.uint8)).all()
        batch.drop()

    with AfXdpQueue("near", **SMALL) as queue, LiveGenerator(veth.far, frame) as generator:
        generator.send(50)
        take(queue, 50, look)
        assert queue.pool.lent >= 50  # and those that wait in the fill ring
        generator.send(50)
        assert len(take(queue, 50)) == 50
        assert [bytes(array) for array in held] == [frame] * 50
        queue.pool.check()
    assert queue.pool.lent == 50
    assert [bytes(array) for array in held] == [frame] * 50
    held.clear()
    assert queue.pool.lent == 0
    queue.pool.check()


def test_a_frame_that_is_sent_while_a_tensor_holds_it(veth: VethPair) -> None:
    """RX, tensor, TX, completion: the page comes home when the device and the tensor are both done."""
    held: list[Any] = []

    def send_back(batch: XdpBatch) -> None:
        held.extend(np.from_dlpack(batch[i]) for i in range(len(batch)))
        batch.tx()

    with (
        AfXdpQueue("near", **SMALL) as queue,
        LiveGenerator(veth.far, frame_to_near(veth)) as generator,
    ):
        pages: set[int] = set()
        for _ in range(5):
            generator.send(40)
            take(queue, 40, send_back)
            assert settled(queue)
            pages |= {array.ctypes.data >> 12 for array in held}
            assert len(pages) == len(held)  # none was used again
            queue.pool.check()
        assert queue.stats().rings.tx_completed == 200
        held.clear()
        generator.send(40)
        assert len(take(queue, 40)) == 40
    assert queue.pool.lent == 0
    queue.pool.check()

# SPDX-License-Identifier: MIT
"""Two queues, a pool and a thread for each: the NIC says which flow goes where, and nothing is shared but the code.

``13_two_queues.py eth0`` receives from queues 0 and 1 of an interface (root); without one, from the NIC in software.
"""

import os
import sys
from contextlib import ExitStack
from itertools import cycle, islice

import numpy as np

from pagepool.drivers.af_xdp import open_queues
from pagepool.drivers.loopback import LoopbackNic, UdpFlows
from pagepool.drivers.queue_threads import run_queues
from pagepool.drivers.rx_queue import RxQueue
from pagepool.xdp import XdpBatch

udp_frames = {0: 0, 1: 0}


def judge(batch: XdpBatch) -> None:
    """Count UDP; in the thread of the batch's queue, which alone touches its own counter."""
    udp = batch.headers(42)[:, 23] == 17
    udp_frames[batch.driver.queue] += int(np.count_nonzero(udp))
    batch.drop()


with ExitStack() as stack:
    queues: list[RxQueue]
    if len(sys.argv) > 1:
        queues = [*stack.enter_context(open_queues(sys.argv[1], [0, 1]))]
    else:
        nic = stack.enter_context(LoopbackNic(2, UdpFlows(64)))
        queues = [nic.queue(0), nic.queue(1)]
    cpus = list(islice(cycle(sorted(os.sched_getaffinity(0))), len(queues)))
    frames = run_queues(queues, judge, seconds=1.0, cpus=cpus)  # Ctrl-C, or an exception, ends all threads
    print(f"{frames:,} frames in two threads, on CPUs {cpus}: {udp_frames} of them UDP")
    for queue in queues:
        pool = queue.pool.stats()
        print(f"queue {queue.queue}: page allocator called {pool.slow} times, {pool.recycled:,} pages recycled")

# SPDX-License-Identifier: MIT
"""Received bytes as tensors without a copy: a socket into 2 MiB pages, and the frames of a queue. torch, else NumPy."""

import socket
from threading import Thread
from typing import Any

import numpy as np

import pagepool as pp
from pagepool.drivers.loopback import NUMBER_AT, LoopbackQueue, UdpFlows

try:
    import torch

    from_dlpack: Any = torch.from_dlpack
    float32: Any = torch.float32
except ImportError:
    from_dlpack, float32 = np.from_dlpack, np.float32

ours, theirs = socket.socketpair()
numbers = np.arange(3 * 512 * 1024, dtype=np.float32)  # three pages of 2 MiB
Thread(target=theirs.sendall, args=(numbers.tobytes(),)).start()

with pp.PagePool(order=9, pool_size=4) as pool:  # order 9: 512 small pages in a row, 2 MiB
    for _ in range(3):
        page = pool.alloc_pages()
        got = 0
        while got < len(page):
            got += ours.recv_into(page[got:])  # the kernel writes to the page
        batch = from_dlpack(page).view(float32).reshape(512, 1024)  # and this is the page
        page.put()  # the tensor holds it now
        print(f"{type(batch).__module__}: {tuple(batch.shape)}, mean {float(batch.mean()):.0f}, {pool.lent} page lent")
        del batch  # the last tensor sends the page home
    print(f"{pool.stats().fresh} page was enough; {pool.lent} are lent now")
ours.close()
theirs.close()

with LoopbackQueue(UdpFlows(count=256)) as queue:
    rows = from_dlpack(queue.memory)  # the memory of all pages, once: row `id` is page `id`
    kept = []
    for frames in queue.poll_forever(budget=64):
        window = from_dlpack(frames.headers(60))  # (64, 60): the frames where they lie side by side, else gathered
        odd = np.asarray(window[:, NUMBER_AT + 3] % 2 == 1)  # a model's verdict
        first = from_dlpack(frames[0])  # one frame, held for as long as the tensor lives
        kept.append(first)
        same = rows[int(frames.ids[0]), int(frames.offsets[0]) :][:60]  # the very bytes, by the page's id
        assert bool((same == first).all())
        frames.tx(odd)  # the verdicts stand, whatever tensors look on
    print(f"{len(kept)} frames kept as tensors of {kept[0].shape[0]} bytes; {queue.xdp_stats.tx} sent back")
    pages = queue.pool
    del window, first, same
    kept.clear()
print(pages.lent, "pages lent at the end")

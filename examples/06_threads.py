# SPDX-License-Identifier: MIT
"""One thread allocates, others put: their pages take the ring, and come back 64 at a time, without a lock for each."""

import queue
import threading

from pagepool import Page, PagePool

work: queue.Queue[Page | None] = queue.Queue(maxsize=256)


def consume() -> None:
    """Use pages and give them back from another thread."""
    while (page := work.get()) is not None:
        page[0] = 1
        page.put()


threads = [threading.Thread(target=consume) for _ in range(2)]
for thread in threads:
    thread.start()

with PagePool(pool_size=512) as pool:  # this thread is the owner: it alone may allocate
    for _ in range(20_000):
        work.put(pool.alloc_pages())
    for _ in range(len(threads)):
        work.put(None)
    for thread in threads:
        thread.join()

    figures = pool.stats()
    print(f"{figures.allocated:,} pages went to other threads; {figures.ring:,} came back through the ring")
    print(f"refilled from it {figures.refill:,} times; fresh pages: {figures.fresh:,}; lent now: {figures.lent}")

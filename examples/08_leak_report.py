# SPDX-License-Identifier: MIT
"""Who has my pages? A tracking pool says where each lent page was allocated, how many, and since when."""

import time

from pagepool import Page, PagePool


def keep_some(pool: PagePool) -> list[Page]:
    """Forget to give three pages back."""
    return [pool.alloc_pages() for _ in range(3)]


pool = PagePool(track=True, limit=64)
forgotten = keep_some(pool)
other = pool.alloc_pages()
time.sleep(0.1)

for holder in pool.holders():
    print(holder)

other.put()
pool.close()  # nothing is torn away: lent pages keep the detached pool alive
print("still out after 0.1 s:", sum(holder.count for holder in pool.drain(timeout=0.1)))

forgotten[0][0] = 42  # still good memory
forgotten.clear()
print("and now:", pool.drain(timeout=1.0))

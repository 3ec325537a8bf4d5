# SPDX-License-Identifier: MIT
"""A page is allocated once and recycled for ever: the same few pages serve a hundred thousand requests."""

from pagepool import PagePool

with PagePool() as pool:
    for number in range(100_000):
        page = pool.alloc_pages()
        page[0:4] = number.to_bytes(4, "big")  # a page is a writable buffer of 4096 bytes
        page.put()  # and now its handle is dead: page[0] would raise DeadPageError

    figures = pool.stats()
    print(f"{figures.allocated:,} pages handed out, {figures.fresh} of them fresh from the page allocator")
    print(f"recycled: {figures.recycle_ratio:.2%}; page allocator called {figures.slow} times")
    print({name: value for name, value in figures.kernel().items() if value})  # the kernel's names
    pool.check()  # hold = cached + ringed + lent + released, or it raises

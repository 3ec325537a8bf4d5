# SPDX-License-Identifier: MIT
"""Small buffers share a page: fragments of 256 bytes, and the page goes home with the last of them."""

from pagepool import PagePool

with PagePool() as pool:
    fragments = [pool.alloc(200) for _ in range(64)]  # rounded up, each with room of its own
    first = fragments[0]
    assert first is not None
    print(f"64 fragments of {len(first)} bytes lie in {pool.stats().lent} lent pages")

    for number, fragment in enumerate(fragments):
        assert fragment is not None
        fragment[0:2] = number.to_bytes(2, "big")

    print("page of the first:", first.id, "with", first.refcount, "references")
    del first, fragment, fragments  # dropping a handle is putting it
    print(f"lent now: {pool.stats().lent}, the page that the pool carves from")

    large = pool.alloc(3000)  # more than half a page: a whole one
    assert large is not None
    print(f"3000 bytes asked, {len(large)} given")
    large.put()

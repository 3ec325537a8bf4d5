# SPDX-License-Identifier: MIT
"""Receive from a socket straight into recycled pages: no copy, no allocation, and views keep their page."""

import socket

import pagepool as pp

sock, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

with pp.PagePool(pool_size=1024) as pool:  # host memory, no privilege needed
    for number in range(1000):
        peer.send(b"message %d" % number)
        page = pool.alloc_pages()  # a recycled 4 KiB page
        size = sock.recv_into(page)  # the buffer protocol: no copy, no allocation
        view = memoryview(page)[:size]  # views keep the page lent ...
        del page, view  # ... and the last one to go returns it to the pool
    print(pool.stats().fresh, "pages were enough")

sock.close()
peer.close()

# SPDX-License-Identifier: MIT
"""AF_XDP: one receive and transmit queue of a network interface in user space, with the pool's arena as
its UMEM.
"""

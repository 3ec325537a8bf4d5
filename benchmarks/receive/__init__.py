# SPDX-License-Identifier: MIT
"""Receiving on a veth pair: receivers in processes of their own, a generator, and passes over all of them."""

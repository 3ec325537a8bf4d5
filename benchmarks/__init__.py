# SPDX-License-Identifier: MIT
"""Benchmarks of pagepool: `python -m benchmarks`, or `make bench`.

In the shape of the kernel's own page_pool benchmark: baselines first, then the paths of the pool from the
cheapest to the dearest, then other threads, then whole devices. Everything that is compared is timed in one
process, in turns (A B C A B C ...), so that what a ratio divides was measured under the same conditions.

A benchmark asserts nothing. `docs/benchmarks.md` says what each row means.
"""

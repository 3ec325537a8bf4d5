# SPDX-License-Identifier: MIT
# Header of ledger.py: figures and reports.
from libc.stdint cimport uint32_t

from pagepool._core.carver cimport Carver

cdef class Ledger(Carver):
    cdef readonly uint32_t id             # of the pool, in this process

    cdef list lent_ids(self)
    cdef void count_words(self, uint32_t *counts) noexcept

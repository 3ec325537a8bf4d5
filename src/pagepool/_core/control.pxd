# SPDX-License-Identifier: MIT
# Header of control.py: owner, node, hooks, life and death.
from pagepool._core.ledger cimport Ledger

cdef class Control(Ledger):
    cdef readonly int users               # creator, registrations; the last to go destroys
    cdef readonly object detach_time      # monotonic seconds of the end with pages out, or None
    cdef bint _creator

    cdef int destroy(self) except -1
    cdef int crossed(self) except -1

# SPDX-License-Identifier: MIT
"""May this thread, which is not Python's, still take the GIL?

A deleter that another library calls comes from any thread at any time. One that asks for the GIL while the interpreter
ends never comes back: Python hangs the thread or ends it, in the middle of the other library. So whoever has no GIL
passes here first, and the interpreter waits at its exit for those that are inside.

Invariant: after `_close` nobody is inside, and nobody comes in but threads that have the GIL already.
"""

import atexit
import os

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.pagepool._core.atomic import pp_add32, pp_add32_total, pp_load32_total, pp_store32_release
from cython.cimports.posix.unistd import usleep


def enter_python():
    if not is_initialized():
        return False
    pp_add32_total(cython.address(inside), 1)
    if is_attached() or pp_load32_total(cython.address(ending)) == 0:
        return True
    leave_python()
    return False


def leave_python():
    pp_add32(cython.address(inside), cython.cast(uint32_t, -1))


def _close():
    # Whoever is inside may be waiting for the GIL: close the gate behind them, and let them have it.
    pp_add32_total(cython.address(ending), 1)
    with cython.nogil:
        while pp_load32_total(cython.address(inside)) != 0:
            usleep(50)


def _after_fork():
    # Threads that were inside are not in the child.
    pp_store32_release(cython.address(inside), 0)


atexit.register(_close)
os.register_at_fork(after_in_child=_after_fork)

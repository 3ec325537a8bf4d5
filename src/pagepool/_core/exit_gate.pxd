# SPDX-License-Identifier: MIT
# Header of exit_gate.py.
from libc.stdint cimport uint32_t

cdef uint32_t inside                  # threads between enter_python and leave_python
cdef uint32_t ending

# Between these two the interpreter does not end. False: it is ending, or has; touch no Python, and do not leave.
cdef bint enter_python() noexcept nogil
cdef void leave_python() noexcept nogil

cdef extern from "Python.h":
    bint is_initialized "Py_IsInitialized"() noexcept nogil
    bint is_attached "PyGILState_Check"() noexcept nogil

# SPDX-License-Identifier: MIT
"""A consumer of the Arrow C interfaces without a library: the structures by ctypes, as the specification has them."""

from __future__ import annotations

import ctypes
from typing import Any


class Schema(ctypes.Structure):
    """``struct ArrowSchema``."""


class Array(ctypes.Structure):
    """``struct ArrowArray``."""


class Stream(ctypes.Structure):
    """``struct ArrowArrayStream``."""


Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(Schema))),
    ("dictionary", ctypes.POINTER(Schema)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(Schema))),
    ("private_data", ctypes.c_void_p),
]
Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(Array))),
    ("dictionary", ctypes.POINTER(Array)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(Array))),
    ("private_data", ctypes.c_void_p),
]
Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Stream), ctypes.POINTER(Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Stream), ctypes.POINTER(Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(Stream))),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(Stream))),
    ("private_data", ctypes.c_void_p),
]

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def in_capsule(capsule: Any, kind: type[Any]) -> Any:
    """Return the structure in a capsule; the capsule must outlive it."""
    name = {Schema: b"arrow_schema", Array: b"arrow_array", Stream: b"arrow_array_stream"}[kind]
    return kind.from_address(_pointer(capsule, name))


def moved(structure: Any) -> Any:
    """Move a structure out, as a consumer does: the old one is released in words."""
    copy = type(structure).from_buffer_copy(structure)
    structure.release = type(structure.release)()
    return copy


def taken(capsule: Any, kind: type[Any]) -> Any:
    """Move the structure out of a capsule."""
    return moved(in_capsule(capsule, kind))


def release(structure: Any) -> None:
    """Call its release callback; ctypes lets go of the GIL for it."""
    structure.release(ctypes.byref(structure))


def buffers(array: Array) -> list[int]:
    """Return the vaddr of each buffer, 0 for none."""
    return [array.buffers[i] or 0 for i in range(array.n_buffers)]


def payloads(column: Array) -> list[bytes]:
    """Read a binary view column."""
    views, found = buffers(column)[1], []
    for row in range(column.length):
        length, _, number, offset = (ctypes.c_int32 * 4).from_address(views + 16 * row)
        at = views + 16 * row + 4 if length <= 12 else buffers(column)[2 + number] + offset
        found.append(ctypes.string_at(at, length))
    return found

# SPDX-License-Identifier: MIT
"""A consumer of DLPack that trusts nobody: the structs of dlpack.h 1.0 in ctypes, read byte by byte.

It takes a capsule as the Python array API standard says (check the name, rename it, own the tensor) and calls the
deleter when it is told to: ctypes lets go of the GIL for that, as a C++ library does.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

READ_ONLY, IS_COPIED = 1, 2
_DELETER = ctypes.CFUNCTYPE(None, c_void_p)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager_ctx", c_void_p), ("deleter", c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


def _api(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_get_name = _api("PyCapsule_GetName", c_char_p, ctypes.py_object)
_get_pointer = _api("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_set_name = _api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, c_char_p)

_NAMES = {b"dltensor_versioned": b"used_dltensor_versioned", b"dltensor": b"used_dltensor"}


class Taken:
    """A tensor taken out of its capsule.

    Parameters
    ----------
    capsule : PyCapsule
        Renamed by this.

    Raises
    ------
    ValueError
        It was taken before, or is no tensor's.
    """

    def __init__(self, capsule: Any) -> None:
        name = _get_name(capsule)
        if name not in _NAMES:
            raise ValueError(f"a capsule named {name!r} holds no tensor to take")
        self.versioned = name == b"dltensor_versioned"
        self.at: int = _get_pointer(capsule, name)
        assert _set_name(capsule, _NAMES[name]) == 0
        managed = (_Versioned if self.versioned else _Managed).from_address(self.at)
        self.version = (managed.major, managed.minor) if self.versioned else None
        self.flags: int = managed.flags if self.versioned else 0
        self.deleter_at: int = managed.deleter
        tensor = managed.tensor
        self.data: int | None = tensor.data
        self.device = (tensor.device_type, tensor.device_id)
        self.dtype = (tensor.code, tensor.bits, tensor.lanes)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.strides = tuple(tensor.strides[: tensor.ndim])
        self.byte_offset: int = tensor.byte_offset

    def read(self, count: int) -> bytes:
        """Return the first bytes, through the pointer."""
        assert self.data is not None
        return ctypes.string_at(self.data + self.byte_offset, count)

    def write(self, value: bytes) -> None:
        """Write to the first bytes, through the pointer."""
        assert self.data is not None
        ctypes.memmove(self.data + self.byte_offset, value, len(value))

    def delete(self) -> None:
        """Call the deleter, without the GIL; once."""
        at, self.at = self.at, 0
        assert at, "the deleter was called before"
        _DELETER(self.deleter_at)(at)

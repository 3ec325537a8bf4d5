# SPDX-License-Identifier: MIT
"""A buffer as array libraries want it: a DLPack capsule, or the dict of the array interface.

Both are made from the buffer protocol, so that all three say the same: where the bytes are, whether they may be
written, and when they are let go. Nothing here knows what a page is, or an array library.

Invariant: a capsule holds one buffer of its exporter, from `__dlpack__` until its deleter runs, once: by the consumer,
in any thread, with or without the GIL; or by the capsule itself where nobody consumed it.
"""

import cython
from cython.cimports.cpython.buffer import (
    PyBUF_FULL_RO,
    PyBuffer_Release,
    PyBuffer_ToContiguous,
    PyObject_GetBuffer,
)
from cython.cimports.cpython.exc import PyErr_Fetch, PyErr_Restore
from cython.cimports.cpython.object import PyObject
from cython.cimports.libc.stdint import int64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import strcmp
from cython.cimports.pagepool._core.exit_gate import enter_python, leave_python
from cython.cimports.posix.stdlib import posix_memalign

CPU_DEVICE = (DL_CPU, 0)
_HOST_DEVICES = (DL_CPU, DL_CUDA_HOST, DL_ROCM_HOST)


class HeldBuffer:
    """A buffer that is held as long as this object lives, and no more than that.

    It stands behind ``data`` of `array_interface`. It has no items: who expects a ``(pointer, read_only)`` pair there
    gets a `TypeError`, not a byte that looks like a pointer.
    """

    def __cinit__(self, exporter):
        self.view = memoryview(exporter)

    def __getbuffer__(self, buffer: cython.pointer[Py_buffer], flags: cython.int):
        PyObject_GetBuffer(self.view, buffer, flags)

    def __repr__(self) -> str:
        return f"<HeldBuffer of {self.view.nbytes} bytes>"


def array_interface(exporter) -> dict:
    """Describe a one-dimensional buffer of bytes by NumPy's array interface, version 3.

    Returns
    -------
    dict
        ``data`` is an object that holds the buffer, as the interface allows, not a bare pointer: an array made from
        the dict keeps it, and with it the memory.

    Notes
    -----
    Source: https://numpy.org/doc/stable/reference/arrays.interface.html
    """
    held = HeldBuffer(exporter)
    return {"version": 3, "shape": (len(held.view),), "typestr": "|u1", "strides": None, "data": held}


def capsule(exporter, *, stream=None, max_version=None, dl_device=None, copy=None, device=CPU_DEVICE, is_copy=False):
    """Make the capsule that an object's ``__dlpack__`` returns.

    Parameters
    ----------
    exporter : buffer of unsigned bytes
        Up to four dimensions, any strides.
    stream, max_version, dl_device, copy
        As the consumer gave them.
    device : tuple of int
        DLPack's type and number of the device that the memory belongs to: ``(1, 0)`` for the CPU, ``(3, 0)`` for host
        memory that CUDA has pinned.
    is_copy : bool
        The buffer was made for this capsule alone.

    Raises
    ------
    BufferError
        A stream, a device that cannot have host memory, a read-only buffer for a consumer that knows no versions (it
        could not be told), or a buffer of anything but bytes.
    """
    return export_capsule(exporter, device, stream, max_version, dl_device, copy, is_copy)


def export_capsule(exporter, device, stream, max_version, dl_device, copy, is_copy):
    made: cython.pointer[pp_export_t]
    tensor: cython.pointer[DLTensor]
    type_and_id: tuple = check_device(dl_device, device)
    versioned: cython.bint = wants_versioned(max_version)
    if stream is not None:
        raise BufferError(f"stream {stream!r}: host memory has no streams, only None means something")
    made = cython.cast(cython.pointer[pp_export_t], calloc(1, cython.sizeof(pp_export_t)))
    if made == cython.NULL:
        raise MemoryError("no memory for a tensor")
    tensor = cython.address(made.old.dl_tensor)
    if versioned:
        tensor = cython.address(made.versioned.dl_tensor)
    try:
        PyObject_GetBuffer(exporter, cython.address(made.view), PyBUF_FULL_RO)
        fill_tensor(made, tensor, type_and_id[0], type_and_id[1])
        if copy is not None and copy and not is_copy:
            take_copy(made, tensor)
            is_copy = True
        must_go_forward(made, tensor.ndim)
        if not versioned and not is_copy and made.view.readonly:
            raise BufferError(
                "this memory is read-only, which a capsule without a version cannot say: ask with max_version=(1, 0), "
                "or with copy=True"
            )
        if versioned:
            made.versioned.version.major = DL_MAJOR
            made.versioned.version.minor = DL_MINOR
            made.versioned.flags = DL_IS_COPIED if is_copy else DL_READ_ONLY if made.view.readonly else 0
            made.versioned.manager_ctx = made
            made.versioned.deleter = versioned_deleter
            return capsule_new(cython.address(made.versioned), b"dltensor_versioned", capsule_died)
        made.old.manager_ctx = made
        made.old.deleter = old_deleter
        return capsule_new(cython.address(made.old), b"dltensor", capsule_died)
    except BaseException:
        end_export(made)
        raise


def fill_tensor(made, tensor, device_type, device_id):
    view: cython.pointer[Py_buffer] = cython.address(made.view)
    i: cython.int
    empty: cython.bint = False
    if view.ndim > MAX_NDIM:
        raise BufferError(f"{view.ndim} dimensions; {MAX_NDIM} at most")
    if view.itemsize != 1 or (view.format != cython.NULL and strcmp(view.format, b"B") != 0):
        raise BufferError("only unsigned bytes are exported; the consumer may view them as it likes")
    if view.suboffsets != cython.NULL:
        raise BufferError("a buffer of pointers to rows is no tensor")
    for i in range(view.ndim):
        made.shape[i] = view.shape[i]
        made.strides[i] = view.strides[i]
        if view.shape[i] == 0:
            empty = True
    tensor.data = cython.NULL if empty else view.buf
    tensor.device.device_type = device_type
    tensor.device.device_id = device_id
    tensor.ndim = view.ndim
    tensor.dtype.code = DL_UINT
    tensor.dtype.bits = 8
    tensor.dtype.lanes = 1
    tensor.shape = made.shape
    tensor.strides = made.strides
    tensor.byte_offset = 0
    return 0


def take_copy(made, tensor):
    # Bytes of our own, contiguous whatever the original is; its exporter is let go at once.
    view: cython.pointer[Py_buffer] = cython.address(made.view)
    i: cython.int
    if posix_memalign(cython.address(made.copy), COPY_ALIGN, view.len + 1):
        made.copy = cython.NULL
        raise MemoryError(f"no memory for a copy of {view.len} bytes")
    if PyBuffer_ToContiguous(made.copy, view, view.len, cython.cast(cython.char, 67)):  # 67: C order
        raise BufferError(f"the {view.len} bytes cannot be copied")
    stride: int64_t = 1
    for i in range(view.ndim - 1, -1, -1):
        made.strides[i] = stride
        stride *= made.shape[i]
    if tensor.data != cython.NULL:
        tensor.data = made.copy
    PyBuffer_Release(view)
    return 0


def must_go_forward(made, ndim):
    # The standard is silent; torch 2.13 ends the whole process when it meets one.
    i: cython.int
    for i in range(ndim):
        if made.strides[i] < 0 and made.shape[i] > 1:
            raise BufferError(
                "the rows lie backwards in memory, which not every consumer of DLPack survives: ask with copy=True, or "
                "take the array (numpy.asarray)"
            )
    return 0


def check_device(device, own):
    # Where the consumer wants it: nowhere in particular, where it is, or on the CPU, which reads all host memory.
    if device is None:
        return own
    try:
        kind, number = device
        wanted = (int(kind), int(number))
    except (TypeError, ValueError):
        raise TypeError(f"dl_device is a pair of ints or None, not {device!r}") from None
    if wanted != own and wanted != CPU_DEVICE:
        raise BufferError(
            f"dl_device {wanted}: this is host memory, device {own}; the consumer may copy it to where it likes"
        )
    return wanted


def wants_versioned(max_version):
    if max_version is None:
        return False
    try:
        major, minor = max_version
        return int(major) >= DL_MAJOR and int(minor) >= 0
    except (TypeError, ValueError):
        raise TypeError(f"max_version is a pair of ints or None, not {max_version!r}") from None


def host_device(device) -> tuple:
    """Return DLPack's name of the device that has a pool's memory, as its ``dlpack_device`` says.

    Raises
    ------
    BufferError
        It names no host memory; a page is nothing else.
    """
    if device is None:
        return CPU_DEVICE
    named = getattr(device, "dlpack_device", CPU_DEVICE)
    try:
        kind, number = named
        if int(kind) in _HOST_DEVICES:
            return int(kind), int(number)
    except (TypeError, ValueError):
        pass
    raise BufferError(f"{device!r} says its memory is on DLPack device {named!r}; a page is host memory")


# -- the end, in any thread --------------------------------------------------------------------------------------


def end_export(made):
    # A tensor may outlive the interpreter (a C++ object of static storage): then there is nobody to give it back to.
    if not enter_python():
        return
    with cython.gil:
        release_view(made)
    leave_python()
    free(made.copy)
    free(made)


def release_view(made):
    # The consumer may be unwinding: its exception is put aside, and is no business of the pool's.
    kind: cython.pointer[PyObject] = cython.NULL
    value: cython.pointer[PyObject] = cython.NULL
    trace: cython.pointer[PyObject] = cython.NULL
    PyErr_Fetch(cython.address(kind), cython.address(value), cython.address(trace))
    PyBuffer_Release(cython.address(made.view))
    PyErr_Restore(kind, value, trace)


def old_deleter(tensor):
    end_export(cython.cast(cython.pointer[pp_export_t], tensor.manager_ctx))


def versioned_deleter(tensor):
    end_export(cython.cast(cython.pointer[pp_export_t], tensor.manager_ctx))


def capsule_died(capsule):
    # A consumer that takes the tensor over renames the capsule ("used_..."); under its first name it is still ours.
    pointer: cython.p_void
    if capsule_is(capsule, b"dltensor_versioned"):
        pointer = capsule_pointer(capsule, b"dltensor_versioned")
        versioned_deleter(cython.cast(cython.pointer[DLManagedTensorVersioned], pointer))
    elif capsule_is(capsule, b"dltensor"):
        pointer = capsule_pointer(capsule, b"dltensor")
        old_deleter(cython.cast(cython.pointer[DLManagedTensor], pointer))

# SPDX-License-Identifier: MIT
# Header of tensor.py: DLPack's structs, and what stands behind one capsule.
#
# The layout is that of dlpack.h 1.0, which every later 1.x keeps (https://github.com/dmlc/dlpack); the names of the
# capsules and who frees what are the Python array API standard's (https://data-apis.org/array-api, `array.__dlpack__`).
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    DL_CPU = 1
    DL_CUDA_HOST = 3         # host memory that CUDA has pinned
    DL_ROCM_HOST = 11
    DL_UINT = 1
    DL_READ_ONLY = 1         # flags: the consumer must not write
    DL_IS_COPIED = 2         # flags: nobody else sees these bytes
    DL_MAJOR = 1
    DL_MINOR = 0
    MAX_NDIM = 4
    COPY_ALIGN = 64          # bytes

cdef struct DLPackVersion:
    uint32_t major
    uint32_t minor

cdef struct DLDevice:
    int32_t device_type
    int32_t device_id

cdef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides         # in elements; never NULL, as 1.2 asks
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept nogil

cdef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *) noexcept nogil
    uint64_t flags
    DLTensor dl_tensor

# Behind one capsule: a buffer that was taken from its exporter, or a copy of it. One allocation; its deleter frees it.
cdef struct pp_export_t:
    Py_buffer view           # view.obj is NULL where `copy` has the bytes
    void *copy
    int64_t shape[MAX_NDIM]
    int64_t strides[MAX_NDIM]
    DLManagedTensor old
    DLManagedTensorVersioned versioned

cdef extern from "Python.h":
    # Without counting the capsule, which is dying where the first two are called.
    bint capsule_is "PyCapsule_IsValid"(PyObject *capsule, const char *name) noexcept
    void *capsule_pointer "PyCapsule_GetPointer"(PyObject *capsule, const char *name) noexcept
    object capsule_new "PyCapsule_New"(void *pointer, const char *name, void (*died)(PyObject *) noexcept)

cdef class HeldBuffer:
    cdef object view

cdef object export_capsule(object exporter, tuple device, object stream, object max_version, object dl_device,
                           object copy, bint is_copy)
cdef int fill_tensor(pp_export_t *made, DLTensor *tensor, int32_t device_type, int32_t device_id) except -1
cdef int take_copy(pp_export_t *made, DLTensor *tensor) except -1
cdef int must_go_forward(pp_export_t *made, int ndim) except -1
cdef tuple check_device(object device, tuple own)
cdef bint wants_versioned(object max_version) except -1
cdef void end_export(pp_export_t *made) noexcept nogil
cdef void release_view(pp_export_t *made) noexcept
cdef void old_deleter(DLManagedTensor *tensor) noexcept nogil
cdef void versioned_deleter(DLManagedTensorVersioned *tensor) noexcept nogil
cdef void capsule_died(PyObject *capsule) noexcept

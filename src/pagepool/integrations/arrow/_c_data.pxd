# SPDX-License-Identifier: MIT
# Header of _c_data.py: the structures of the Arrow C data and C stream interfaces, which are an ABI.
# https://arrow.apache.org/docs/format/CDataInterface.html, https://arrow.apache.org/docs/format/CStreamInterface.html
from cpython.object cimport PyObject
from libc.errno cimport EIO
from libc.stdint cimport int64_t

from pagepool.integrations.arrow._holding cimport Holding, pp_holding_t

ctypedef struct ArrowSchema:
    const char *format
    const char *name
    const char *metadata
    int64_t flags
    int64_t n_children
    ArrowSchema **children
    ArrowSchema *dictionary
    void (*release)(ArrowSchema *) noexcept nogil
    void *private_data

ctypedef struct ArrowArray:
    int64_t length
    int64_t null_count
    int64_t offset
    int64_t n_buffers
    int64_t n_children
    const void **buffers
    ArrowArray **children
    ArrowArray *dictionary
    void (*release)(ArrowArray *) noexcept nogil
    void *private_data

ctypedef struct ArrowArrayStream:
    int (*get_schema)(ArrowArrayStream *, ArrowSchema *) noexcept nogil
    int (*get_next)(ArrowArrayStream *, ArrowArray *) noexcept nogil
    const char *(*get_last_error)(ArrowArrayStream *) noexcept nogil
    void (*release)(ArrowArrayStream *) noexcept nogil
    void *private_data

cdef enum:
    ARROW_FLAG_NULLABLE = 2

# What a stream remembers.
ctypedef struct pp_stream_t:
    PyObject *source         # a reference owned
    char *error              # of the last call that failed, malloced; or NULL

cdef int _fill_schema(ArrowSchema *out, bytes format, bytes name, int64_t flags, Py_ssize_t n_children) except -1
cdef void _release_schema(ArrowSchema *schema) noexcept nogil
cdef void _free_schema_capsule(object capsule) noexcept

cdef int _fill_array(
    ArrowArray *out, Holding holding, int64_t length, int64_t null_count, object buffers, Py_ssize_t n_children
) except -1
cdef void _release_array(ArrowArray *array) noexcept nogil
cdef void _free_array_capsule(object capsule) noexcept

cdef int _get_schema(ArrowArrayStream *stream, ArrowSchema *out) noexcept nogil
cdef int _get_next(ArrowArrayStream *stream, ArrowArray *out) noexcept nogil
cdef const char *_get_last_error(ArrowArrayStream *stream) noexcept nogil
cdef void _release_stream(ArrowArrayStream *stream) noexcept nogil
cdef void _free_stream_capsule(object capsule) noexcept

cdef int _move_schema(pp_stream_t *stream, ArrowSchema *out) noexcept
cdef int _move_next(pp_stream_t *stream, ArrowArray *out) noexcept
cdef int _failed(pp_stream_t *stream, object error) noexcept
cdef void _drop(pp_stream_t *stream) noexcept

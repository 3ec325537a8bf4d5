# SPDX-License-Identifier: MIT
"""The Arrow C data and C stream interfaces: three structures, their release callbacks, and capsules around them.

A struct array whose children are columns, that is a record batch. Buffers are given by their vaddr and held by a
`Holding`; no byte of them is touched here. Every structure owns what it points to, so a consumer may move children out,
and may release in any thread.

Invariant: a structure is released once. Its ``release`` is NULL from then on, as it is after a move, and a capsule that
nobody consumed releases what it holds.
"""

import cython
from cython.cimports.cpython.buffer import PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_GET_SIZE
from cython.cimports.cpython.exc import PyErr_Fetch, PyErr_Restore
from cython.cimports.cpython.object import PyObject
from cython.cimports.cpython.pycapsule import PyCapsule_GetPointer, PyCapsule_New
from cython.cimports.cpython.ref import Py_DECREF, Py_INCREF
from cython.cimports.libc.errno import EIO
from cython.cimports.libc.stdint import int64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.pagepool._core.exit_gate import enter_python, leave_python
from cython.cimports.pagepool.integrations.arrow._holding import Holding, holding_get, holding_put

if not cython.compiled:
    raise ImportError("pagepool.integrations.arrow._c_data is compiled: run `make build`, or `pip install .`")


# -- schema ------------------------------------------------------------------------------------------------------


def schema_capsule(fields: list) -> object:
    """Return an ``arrow_schema`` capsule of a struct.

    Parameters
    ----------
    fields : list of (str, str, bool)
        Name, format string of the C data interface, whether it may be null.
    """
    at: cython.Py_ssize_t
    schema: cython.pointer[ArrowSchema] = cython.cast(
        cython.pointer[ArrowSchema], calloc(1, cython.sizeof(ArrowSchema))
    )
    if schema == cython.NULL:
        raise MemoryError("no memory for an Arrow schema")
    try:
        _fill_schema(schema, b"+s", b"", 0, len(fields))
        for at in range(len(fields)):
            name, format, nullable = fields[at]
            flags = ARROW_FLAG_NULLABLE if nullable else 0
            _fill_schema(schema.children[at], format.encode(), name.encode(), flags, 0)
        return PyCapsule_New(schema, "arrow_schema", _free_schema_capsule)
    except BaseException:
        if schema.release != cython.NULL:
            schema.release(schema)
        free(schema)
        raise


def _fill_schema(out, format, name, flags, n_children):
    # One block: pointers to the children, the children, both strings.
    size_format: cython.Py_ssize_t = PyBytes_GET_SIZE(format) + 1
    size_name: cython.Py_ssize_t = PyBytes_GET_SIZE(name) + 1
    each: cython.Py_ssize_t = cython.sizeof(cython.p_void) + cython.sizeof(ArrowSchema)
    block: cython.p_char = cython.cast(cython.p_char, calloc(1, n_children * each + size_format + size_name))
    i: cython.Py_ssize_t
    if block == cython.NULL:
        raise MemoryError("no memory for an Arrow schema")
    children: cython.pointer[cython.pointer[ArrowSchema]] = cython.cast(
        cython.pointer[cython.pointer[ArrowSchema]], block
    )
    below: cython.pointer[ArrowSchema] = cython.cast(
        cython.pointer[ArrowSchema], block + n_children * cython.sizeof(cython.p_void)
    )
    text: cython.p_char = block + n_children * each
    for i in range(n_children):
        children[i] = below + i
    memcpy(text, PyBytes_AS_STRING(format), size_format)
    memcpy(text + size_format, PyBytes_AS_STRING(name), size_name)
    memset(out, 0, cython.sizeof(ArrowSchema))
    out.format = text
    out.name = text + size_format
    out.flags = flags
    out.n_children = n_children
    out.children = children if n_children else cython.NULL
    out.private_data = block
    out.release = _release_schema
    return 0


def _release_schema(schema):
    i: int64_t
    if schema.release == cython.NULL:
        return
    for i in range(schema.n_children):
        if schema.children[i].release != cython.NULL:
            schema.children[i].release(schema.children[i])
    schema.release = cython.NULL
    free(schema.private_data)


def _free_schema_capsule(capsule):
    schema: cython.pointer[ArrowSchema] = cython.cast(
        cython.pointer[ArrowSchema], PyCapsule_GetPointer(capsule, "arrow_schema")
    )
    if schema.release != cython.NULL:
        schema.release(schema)
    free(schema)


# -- array -------------------------------------------------------------------------------------------------------


def array_capsule(holding: Holding, length: int, columns: list) -> object:
    """Return an ``arrow_array`` capsule of a struct.

    Parameters
    ----------
    holding : Holding
        Holds everything that the buffers point to.
    length : int
        Rows.
    columns : list of (int, buffer of uint64)
        Null count, and the vaddr of each buffer, 0 for one that is not there. They are read now and not held.
    """
    at: cython.Py_ssize_t
    if holding is None:
        raise TypeError("an array needs a holding")
    array: cython.pointer[ArrowArray] = cython.cast(cython.pointer[ArrowArray], calloc(1, cython.sizeof(ArrowArray)))
    if array == cython.NULL:
        raise MemoryError("no memory for an Arrow array")
    try:
        _fill_array(array, holding, length, 0, bytes(8), len(columns))
        for at in range(len(columns)):
            null_count, buffers = columns[at]
            _fill_array(array.children[at], holding, length, null_count, buffers, 0)
        return PyCapsule_New(array, "arrow_array", _free_array_capsule)
    except BaseException:
        if array.release != cython.NULL:
            array.release(array)
        free(array)
        raise


def _fill_array(out, holding, length, null_count, buffers, n_children):
    # One block: the holding, pointers to the buffers, pointers to the children, the children.
    view: Py_buffer
    block: cython.p_char
    i: cython.Py_ssize_t
    PyObject_GetBuffer(buffers, cython.address(view), PyBUF_ND)
    try:
        each: cython.Py_ssize_t = cython.sizeof(cython.p_void) + cython.sizeof(ArrowArray)
        block = cython.cast(cython.p_char, calloc(1, cython.sizeof(cython.p_void) + view.len + n_children * each))
        if block == cython.NULL:
            raise MemoryError("no memory for an Arrow array")
        memset(out, 0, cython.sizeof(ArrowArray))
        out.buffers = cython.cast(cython.pointer[cython.p_const_void], block + cython.sizeof(cython.p_void))
        memcpy(out.buffers, view.buf, view.len)
        out.n_buffers = view.len // cython.sizeof(cython.p_void)
    finally:
        PyBuffer_Release(cython.address(view))
    children: cython.pointer[cython.pointer[ArrowArray]] = cython.cast(
        cython.pointer[cython.pointer[ArrowArray]], out.buffers + out.n_buffers
    )
    below: cython.pointer[ArrowArray] = cython.cast(cython.pointer[ArrowArray], children + n_children)
    for i in range(n_children):
        children[i] = below + i
    holding_get(holding.holding)
    cython.cast(cython.pointer[cython.pointer[pp_holding_t]], block)[0] = holding.holding
    out.length = length
    out.null_count = null_count
    out.n_children = n_children
    out.children = children if n_children else cython.NULL
    out.private_data = block
    out.release = _release_array
    return 0


def _release_array(array):
    i: int64_t
    if array.release == cython.NULL:
        return
    for i in range(array.n_children):
        if array.children[i].release != cython.NULL:
            array.children[i].release(array.children[i])
    array.release = cython.NULL
    holding_put(cython.cast(cython.pointer[cython.pointer[pp_holding_t]], array.private_data)[0])
    free(array.private_data)


def _free_array_capsule(capsule):
    array: cython.pointer[ArrowArray] = cython.cast(
        cython.pointer[ArrowArray], PyCapsule_GetPointer(capsule, "arrow_array")
    )
    if array.release != cython.NULL:
        array.release(array)
    free(array)


# -- stream ------------------------------------------------------------------------------------------------------


def stream_capsule(source: object) -> object:
    """Return an ``arrow_array_stream`` capsule.

    Parameters
    ----------
    source : object
        ``source.__arrow_c_schema__()`` gives the schema; ``source.read_next()`` the next object with
        ``__arrow_c_array__``, or None at the end. Exceptions become the stream's error, with their errno if they have
        one.

    Notes
    -----
    Context: a consumer asks from any thread, but not from two at once; the GIL is taken for each question.
    """
    remembered: cython.pointer[pp_stream_t] = cython.NULL
    stream: cython.pointer[ArrowArrayStream] = cython.cast(
        cython.pointer[ArrowArrayStream], calloc(1, cython.sizeof(ArrowArrayStream))
    )
    try:
        remembered = cython.cast(cython.pointer[pp_stream_t], calloc(1, cython.sizeof(pp_stream_t)))
        if stream == cython.NULL or remembered == cython.NULL:
            raise MemoryError("no memory for an Arrow stream")
        capsule = PyCapsule_New(stream, "arrow_array_stream", _free_stream_capsule)
    except BaseException:
        free(remembered)
        free(stream)
        raise
    Py_INCREF(source)
    remembered.source = cython.cast(cython.pointer[PyObject], source)
    stream.get_schema = _get_schema
    stream.get_next = _get_next
    stream.get_last_error = _get_last_error
    stream.private_data = remembered
    stream.release = _release_stream
    return capsule


def _get_schema(stream, out):
    result: cython.int
    if not enter_python():
        return EIO
    with cython.gil:
        result = _move_schema(cython.cast(cython.pointer[pp_stream_t], stream.private_data), out)
    leave_python()
    return result


def _get_next(stream, out):
    result: cython.int
    if not enter_python():
        return EIO
    with cython.gil:
        result = _move_next(cython.cast(cython.pointer[pp_stream_t], stream.private_data), out)
    leave_python()
    return result


def _move_schema(stream, out):
    # Into the consumer's structure; the capsule keeps an empty one.
    made: cython.pointer[ArrowSchema]
    try:
        capsule = cython.cast(object, stream.source).__arrow_c_schema__()
        made = cython.cast(cython.pointer[ArrowSchema], PyCapsule_GetPointer(capsule, "arrow_schema"))
        out[0] = made[0]
        made.release = cython.NULL
        return 0
    except BaseException as error:
        return _failed(stream, error)


def _move_next(stream, out):
    made: cython.pointer[ArrowArray]
    try:
        batch = cython.cast(object, stream.source).read_next()
        if batch is None:
            memset(out, 0, cython.sizeof(ArrowArray))  # no release: the end
            return 0
        capsule = batch.__arrow_c_array__()[1]
        made = cython.cast(cython.pointer[ArrowArray], PyCapsule_GetPointer(capsule, "arrow_array"))
        out[0] = made[0]
        made.release = cython.NULL
        return 0
    except BaseException as error:
        return _failed(stream, error)


def _failed(stream, error):
    # What the consumer will ask for; a text that cannot be had must not hide the failure.
    text: bytes
    code: cython.int = EIO
    try:
        code = getattr(error, "errno", None) or EIO
        text = (str(error) or type(error).__name__).encode(errors="replace").replace(b"\0", b"?")
    except BaseException:
        text = b"an error that has no text"
    free(stream.error)
    stream.error = cython.cast(cython.p_char, malloc(PyBytes_GET_SIZE(text) + 1))
    if stream.error != cython.NULL:
        memcpy(stream.error, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text) + 1)
    return code if code > 0 else EIO


def _get_last_error(stream):
    return cython.cast(cython.pointer[pp_stream_t], stream.private_data).error


def _release_stream(stream):
    remembered: cython.pointer[pp_stream_t] = cython.cast(cython.pointer[pp_stream_t], stream.private_data)
    if stream.release == cython.NULL:
        return
    stream.release = cython.NULL
    if enter_python():
        with cython.gil:
            _drop(remembered)
        leave_python()
    free(remembered.error)
    free(remembered)


def _drop(stream):
    # The caller may be a finalizer with an exception of its own on the way: it is put aside.
    kind: cython.pointer[PyObject] = cython.NULL
    value: cython.pointer[PyObject] = cython.NULL
    trace: cython.pointer[PyObject] = cython.NULL
    PyErr_Fetch(cython.address(kind), cython.address(value), cython.address(trace))
    Py_DECREF(cython.cast(object, stream.source))
    PyErr_Restore(kind, value, trace)


def _free_stream_capsule(capsule):
    stream: cython.pointer[ArrowArrayStream] = cython.cast(
        cython.pointer[ArrowArrayStream], PyCapsule_GetPointer(capsule, "arrow_array_stream")
    )
    if stream.release != cython.NULL:
        stream.release(stream)
    free(stream)

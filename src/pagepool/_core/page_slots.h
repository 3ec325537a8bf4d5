/* SPDX-License-Identifier: MIT
 *
 * The life of a Page object: the slots that Cython cannot write as cheaply.
 *
 * A handle lives for a few hundred nanoseconds, so its memory is kept by the pool that made it: pp_page_revive() makes
 * an object of it again, and `died` (page_died in carver.py) is the type's tp_dealloc, which decides what happens to
 * the page and where the memory goes. Cython's own pair (malloc, a full tp_new, a destructor that always saves and
 * restores the exception state) costs half a recycle more.
 *
 * In builds without a GIL no memory is kept: one pool's handles may die in several threads at once.
 */
#ifndef PP_PAGE_SLOTS_H
#define PP_PAGE_SLOTS_H

#include <Python.h>

static newfunc pp_page_new; /* Cython's own */

/* A handle without a pool must not be: Page.__new__(Page) is refused as Page() is. */
static inline PyObject *pp_page_refuse(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	PyErr_SetString(PyExc_TypeError, "a Page comes from PagePool.alloc_pages(), it is not made");
	return NULL;
}

/* Make `died` the type's tp_dealloc. Once, before the first Page is made. */
static inline void pp_page_install(PyTypeObject *type, destructor died)
{
	pp_page_new = type->tp_new;
	type->tp_new = pp_page_refuse;
	type->tp_vectorcall = NULL; /* the short way from Page() to Cython's own */
	type->tp_dealloc = died;
}

/* A new object, all fields zero. */
static inline PyObject *pp_page_make(PyTypeObject *type, PyObject *no_args) { return pp_page_new(type, no_args, NULL); }

/* Make kept memory an object again, with one reference. */
static inline PyObject *pp_page_revive(PyObject *page) { return PyObject_Init(page, Py_TYPE(page)); }

/* A heap type counts its instances; a kept handle is none. */
static inline void pp_page_uncount(PyObject *page)
{
	if (Py_TYPE(page)->tp_flags & Py_TPFLAGS_HEAPTYPE)
		Py_DECREF(Py_TYPE(page));
}

/* The memory of a kept handle, for good. */
static inline void pp_page_forget(PyObject *page) { Py_TYPE(page)->tp_free(page); }

/* The memory of a handle that dies now, for good. */
static inline void pp_page_free(PyObject *page)
{
	PyTypeObject *type = Py_TYPE(page);
	int heap = (type->tp_flags & Py_TPFLAGS_HEAPTYPE) != 0;

	type->tp_free(page);
	if (heap)
		Py_DECREF(type);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The few machine words that Cython cannot say: ordered loads and stores, one spin lock, the calling thread.
 * Every acquire here names no partner: the comment at the call site does.
 */
#ifndef PP_ATOMIC_H
#define PP_ATOMIC_H

#include <Python.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef Py_GIL_DISABLED
#define PP_GIL_DISABLED 1
#else
#define PP_GIL_DISABLED 0
#endif

/* Relaxed: the word is not torn, nothing is ordered. */
static inline uint64_t pp_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void pp_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint32_t pp_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void pp_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }

/* Sequentially consistent, for two sides that each announce themselves and then look whether the other has: one of them
 * sees the other. All four accesses are of this kind. */
static inline uint32_t pp_load32_total(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline uint32_t pp_add32_total(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static inline void pp_store32_total(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

/* Acquire: what follows is not read before. Release: what precedes is written before. */
static inline uint64_t pp_load64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t pp_load32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void pp_store32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* Full: a store before it is seen by whoever then misses what is loaded after it; for "publish, then look whether the
 * other side sleeps", which acquire and release do not order. */
static inline void pp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Read-modify-write, acquire and release at once; the old value comes back. */
static inline uint64_t pp_add64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
static inline uint64_t pp_sub64(uint64_t *p, uint64_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_ACQ_REL); }
static inline uint32_t pp_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
static inline int pp_cas64(uint64_t *p, uint64_t expected, uint64_t wanted)
{
	return __atomic_compare_exchange_n(p, &expected, wanted, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* As pp_cas64 where threads run without a GIL; a plain compare and store where the GIL already keeps others out. */
static inline int pp_cas64_gil(uint64_t *p, uint64_t expected, uint64_t wanted)
{
#if PP_GIL_DISABLED
	return pp_cas64(p, expected, wanted);
#else
	if (pp_load64(p) != expected)
		return 0;
	pp_store64(p, wanted);
	return 1;
#endif
}

/* Take the value out of *p and leave v; atomic where there is no GIL. */
static inline uint32_t pp_swap32_gil(uint32_t *p, uint32_t v)
{
#if PP_GIL_DISABLED
	return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL);
#else
	uint32_t old = *p;
	*p = v;
	return old;
#endif
}

/* A lock for a few dozen instructions, never held across a call into Python: spin a little, then give the core away. */
static inline void pp_lock(uint32_t *lock)
{
	int spins = 0;

	while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) {
		while (__atomic_load_n(lock, __ATOMIC_RELAXED)) {
			if (++spins < 100) {
#if defined(__x86_64__) || defined(__i386__)
				__builtin_ia32_pause();
#endif
			} else {
				sched_yield();
			}
		}
	}
}
static inline void pp_unlock(uint32_t *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

/* The calling thread: its control block, one register read where the ABI keeps it in one. */
static inline uintptr_t pp_thread_id(void)
{
#if defined(__x86_64__)
	uintptr_t id;
	__asm__("movq %%fs:0, %0" : "=r"(id));
	return id;
#elif defined(__aarch64__)
	uintptr_t id;
	__asm__("mrs %0, tpidr_el0" : "=r"(id));
	return id;
#else
	return (uintptr_t)pthread_self();
#endif
}

/* The NUMA node of the processor that runs this, 0 where the kernel does not say; getcpu(2). */
static inline int pp_current_node(void)
{
	unsigned int cpu = 0, node = 0;

	return syscall(SYS_getcpu, &cpu, &node, NULL) == 0 ? (int)node : 0;
}

/* The interpreter is going down: modules may be empty, and there is nobody left to tell. */
static inline int pp_is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
	return Py_IsFinalizing();
#else
	return _Py_IsFinalizing();
#endif
}

#define pp_likely(x) __builtin_expect(!!(x), 1)
#define pp_unlikely(x) __builtin_expect(!!(x), 0)

#endif

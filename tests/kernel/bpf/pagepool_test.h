/* SPDX-License-Identifier: MIT
 * What <bpf/bpf_helpers.h> of libbpf has, as far as the programs here use it, so that clang alone makes them.
 */
#include <linux/bpf.h>

typedef __u64 u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, number) int(*name)[number]
#define __type(name, kind) kind *name
#define __noinline __attribute__((noinline))

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;

#define be16(at) ((__u16)((at)[0] << 8 | (at)[1]))
